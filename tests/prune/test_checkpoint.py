from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
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


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
def test_a_failure_half_way_leaves_nothing(
    tiny_model_dir: Path, tiny_tokens: Tensor, tmp_path: Path, error: BaseException
) -> None:
    loaded = load_model(str(tiny_model_dir))
    report = prune_model(loaded.model, RECIPE, tiny_tokens[:96].view(2, 48))

    class Failing:
        def save_pretrained(self, folder: Path) -> None:
            assert list(folder.glob("*.safetensors"))  # the model is written by now
            raise error

    broken = Loaded(loaded.model, Failing(), loaded.name)
    expected = GppruneError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save_pruned(broken, RECIPE, report, tmp_path / "out")
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
