from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_families import tiny
from transformers import PreTrainedTokenizerFast

from gpprune.compile import cache_folder
from gpprune.errors import UsageError
from gpprune.prune import (
    MODEL_SOURCES,
    ModelSource,
    blocks,
    load_model,
)


def test_a_directory_is_loaded_ready_to_evaluate(tiny_model_dir: Path) -> None:
    loaded = load_model(str(tiny_model_dir))
    assert loaded.name == str(tiny_model_dir)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    text = "The green river flows"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_the_dtype_is_the_one_asked_for(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_relative_directory_is_found(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    assert load_model(tiny_model_dir.name).name == tiny_model_dir.name


def test_progress_ends_where_it_should(tiny_model_dir: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    load_model(str(tiny_model_dir), progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "./absent",
        "../absent",
        "~/absent-model",
        "/absent/model",
        "a/b/c",
        "a b",
        "~nobody-x/m",
        "a\0b",
    ],
)
def test_a_missing_directory_is_named(spec: str) -> None:
    with pytest.raises(UsageError, match="there is no model directory") as caught:
        load_model(spec)
    assert repr(spec) in str(caught.value)


def test_a_path_below_a_directory_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'runs/pruned'"):
        load_model("runs/pruned")


def test_a_directory_without_a_model_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        load_model(str(tmp_path / "weights.bin"))


def test_a_hub_id_that_was_never_fetched_is_named_at_once_when_offline(tmp_path: Path) -> None:
    # A process of its own: the hub's client reads its environment when it is imported.
    code = (
        "from gpprune.errors import GppruneError\n"
        "from gpprune.prune import load_model\n"
        "try:\n    load_model('no-such-org/no-such-model')\n"
        "except GppruneError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("GppruneError the model 'no-such-org/no-such-model'")
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_a_language_model_beside_a_deeper_vision_tower_is_found(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny("gemma3")
    model.resize_token_embeddings(512)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert blocks(loaded.model) is loaded.model.get_decoder().layers


def test_a_source_that_is_added_serves_at_once(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grown").mkdir()  # a name comes before a directory of that name
    named = ModelSource("grown", lambda spec, progress: str(tiny_model_dir))
    prefixed = ModelSource(
        "mine",
        lambda spec, progress: str(tiny_model_dir.parent / spec.removeprefix("mine:")),
        takes=lambda spec: spec.startswith("mine:"),
        about="mine:NAME",
    )
    with MODEL_SOURCES.including(named, prefixed):
        assert load_model("grown").name == "grown"
        assert load_model("mine:tiny-llama").name == "mine:tiny-llama"
        with pytest.raises(UsageError, match=r"a hub id .*smollm2, grown or mine:NAME$"):
            load_model("./absent")
    with pytest.raises(UsageError, match="holds no model"):
        load_model("grown")


def test_a_model_that_no_source_takes_is_named() -> None:
    hub = MODEL_SOURCES.remove("hub")
    try:
        with pytest.raises(UsageError, match=r"no model 'org/name'.*an existing directory"):
            load_model("org/name")
    finally:
        others = [MODEL_SOURCES.remove(name) for name in list(MODEL_SOURCES)]
        for source in (hub, *others):  # the hub is the first, and asked last
            MODEL_SOURCES.add(source)


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GPPRUNE_CACHE")
    assert cache_folder().name == "gpprune"
