from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    RECORD_FILE,
    Loaded,
    PruneReport,
    Recipe,
    check_output,
    load_model,
    prune_model,
    save_pruned,
)

RECIPE = Recipe(metric="wanda", sparsity=0.5)


@pytest.fixture(params=["tiny_model_dir", "tiny_gpt2_dir"])
def pruned(request: pytest.FixtureRequest, tiny_tokens: Tensor) -> tuple[Loaded, PruneReport]:
    loaded = load_model(str(request.getfixturevalue(request.param)))
    return loaded, prune_model(loaded.model, RECIPE, tiny_tokens[:96].view(2, 48))


def test_plain_transformers_loads_it_bit_for_bit(
    pruned: tuple[Loaded, PruneReport], tmp_path: Path, tiny_tokens: Tensor
) -> None:
    loaded, report = pruned
    out = save_pruned(loaded, RECIPE, report, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(out)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    with torch.no_grad():
        tokens = tiny_tokens[None, :32]
        assert torch.equal(model(tokens).logits, loaded.model(tokens).logits)
    text = "There are 12 roads"
    assert AutoTokenizer.from_pretrained(out)(text) == loaded.tokenizer(text)
    assert {path.suffix for path in out.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_the_recipe_lies_beside_the_model(
    pruned: tuple[Loaded, PruneReport], tmp_path: Path
) -> None:
    loaded, report = pruned
    out = save_pruned(loaded, RECIPE, report, tmp_path / "out")
    assert Recipe.read(out / RECORD_FILE) == RECIPE
    record = json.loads((out / RECORD_FILE).read_text())
    assert record["report"] == report.as_dict()
    assert record["model"] == loaded.name and record["gpprune"]


def test_a_saved_model_can_be_pruned_again(
    pruned: tuple[Loaded, PruneReport], tmp_path: Path, tiny_tokens: Tensor
) -> None:
    loaded, report = pruned
    out = save_pruned(loaded, RECIPE, report, tmp_path / "deep" / "er" / "out")
    again = load_model(str(out))
    more = Recipe(metric="wanda", sparsity=0.75)
    deeper = prune_model(again.model, more, tiny_tokens[:96].view(2, 48))
    assert deeper.sparsity == 0.75


def test_an_existing_output_is_left_alone(
    pruned: tuple[Loaded, PruneReport], tmp_path: Path
) -> None:
    loaded, report = pruned
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(UsageError, match="exists"):
            save_pruned(loaded, RECIPE, report, out)
        with pytest.raises(UsageError, match="exists"):
            check_output(out)
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_an_output_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "locked" / "out")


@pytest.mark.parametrize(
    "out", ["n" * 256, "deep/" + "n" * 256, "a\0b", "~no-such-user-x/out", "deep/.."]
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        check_output(out)
    assert repr(out) in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["n" * 255, "a**b", "x*", "deep/er/out", "~/out", "with\nline"])
def test_what_will_not_fail_is_let_pass_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output(out) == Path(out.replace("~", str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_its_files_obey_the_umask(pruned: tuple[Loaded, PruneReport], tmp_path: Path) -> None:
    loaded, report = pruned
    before = os.umask(0o027)
    try:
        out = save_pruned(loaded, RECIPE, report, tmp_path / "x*")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    assert out.stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (OSError("odd"), GppruneError, "odd"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), GppruneError, "free some space"),
        # What safetensors and tokenizers raise, which are written in Rust.
        (SafetensorError("No space left on device (os error 28)"), GppruneError, "free some space"),
        (Exception("File too large (os error 27)"), GppruneError, "free some space"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (MemoryError("full"), MemoryError, "full"),
    ],
)
def test_a_failure_half_way_leaves_nothing(
    tiny_model_dir: Path,
    tiny_tokens: Tensor,
    tmp_path: Path,
    error: BaseException,
    expected: type[BaseException],
    words: str,
) -> None:
    loaded = load_model(str(tiny_model_dir))
    report = prune_model(loaded.model, RECIPE, tiny_tokens[:96].view(2, 48))

    class Failing:
        def save_pretrained(self, folder: Path) -> None:
            assert list(folder.glob("*.safetensors"))  # the model is written by now
            raise error

    broken = Loaded(loaded.model, Failing(), loaded.name)
    with pytest.raises(expected, match=words):
        save_pruned(broken, RECIPE, report, tmp_path / "deep" / "out")
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_weights_is_one_sentence(tiny_model_dir: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\n"
        "from gpprune.errors import GppruneError\n"
        "from gpprune.prune import Recipe, load_model, prune_model, save_pruned\n"
        "loaded = load_model(sys.argv[1])\n"
        "recipe = Recipe(metric='magnitude', sparsity=0.5)\n"
        "report = prune_model(loaded.model, recipe, torch.arange(12).view(2, 6))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    save_pruned(loaded, recipe, report, sys.argv[2])\n"
        "except GppruneError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_model_dir), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write the checkpoint") and not done.stderr
    assert "free some space" in done.stdout and done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_abandoned_partial_is_cleared_by_the_next_writer(
    pruned: tuple[Loaded, PruneReport], tmp_path: Path
) -> None:
    loaded, report = pruned
    for name, age in (("old", 1e5), ("new", 0.0)):
        folder = tmp_path / f".out.partial-{name}"
        folder.mkdir()
        (folder / "half").write_text("x")
        for path in (folder / "half", folder):
            stamp = path.stat().st_mtime - age
            os.utime(path, (stamp, stamp))
    save_pruned(loaded, RECIPE, report, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial-new", "out"]
