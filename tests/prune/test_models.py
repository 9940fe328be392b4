from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpprune.compile import cache_folder
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import load_model


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


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
    ["", "./absent", "../absent", "~/absent-model", "/absent/model", "a/b/c", "a b", "~nobody-x/m"],
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


def test_a_damaged_checkpoint_is_one_sentence(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GppruneError, match="cannot load the model") as caught:
        load_model(str(copy))
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "no-such-architecture"}'])
def test_a_damaged_configuration_is_one_sentence(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    with pytest.raises(GppruneError, match="cannot load the model") as caught:
        load_model(str(copy))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(GppruneError, match="safetensors"):
        load_model(str(copy))


def test_code_that_a_checkpoint_brings_is_not_run(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "brought"
    config["auto_map"] = {
        "AutoConfig": "brought.Config",
        "AutoModelForCausalLM": "brought.Model",
    }
    (copy / "config.json").write_text(json.dumps(config))
    mark = copy / "ran"
    (copy / "brought.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(GppruneError, match="cannot load the model"):
        load_model(str(copy))
    assert not mark.exists()


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


def test_a_model_without_linear_layers_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    outside = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    save_file(outside, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GppruneError, match="nothing to prune"):
        load_model(str(copy))


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GPPRUNE_CACHE")
    assert cache_folder().name == "gpprune"
