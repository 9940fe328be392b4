"""What is said of a checkpoint, against a count over its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gpprune.discover import Texts, inspect_checkpoint, prune_to
from gpprune.errors import UsageError
from gpprune.prune import (
    MODEL_SOURCES,
    RECORD_FILE,
    ModelSource,
    Recipe,
    inspect_model,
    linear_layers,
    load_model,
    model_digest,
    prune_model,
    read_record,
    save_pruned,
)

WEIGHTS = "model.safetensors"
LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(params=["tiny_model_dir", "tiny_gpt2_dir"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def checkpoint(tiny_model_dir: Path, tiny_tokens: Tensor, tmp_path: Path) -> Path:
    """The tiny Llama, pruned to 2:4."""
    loaded = load_model(str(tiny_model_dir))
    recipe = Recipe(metric="wanda", pattern="2:4")
    report = prune_model(loaded.model, recipe, tiny_tokens[:96].view(2, 48))
    return save_pruned(loaded, recipe, report, tmp_path / "pruned")


def changed(checkpoint: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Write the weights of a checkpoint anew."""
    weights = load_file(checkpoint / WEIGHTS)
    change(weights)
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})


def rewritten(checkpoint: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the record of a checkpoint anew."""
    record = json.loads((checkpoint / RECORD_FILE).read_text())
    change(record)
    (checkpoint / RECORD_FILE).write_text(json.dumps(record))


def test_zeros_groups_and_what_is_dead_are_those_of_the_file(folder: str, tmp_path: Path) -> None:
    loaded = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    for layer in linear_layers(loaded.model).values():
        mask = torch.rand(layer.weight.shape, generator=generator) < 0.4
        mask[3], mask[:, 5:7] = True, True
        layer.write(layer.weight.masked_fill(mask, 0))
    loaded.model.save_pretrained(tmp_path / "out")  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(tmp_path / "out")
    found = inspect_checkpoint(str(tmp_path / "out"))
    assert found.record is None and not found.faults
    file = load_file(tmp_path / "out" / WEIGHTS)
    transposed = {name: layer.transposed for name, layer in linear_layers(loaded.model).items()}
    assert [layer.name for layer in found.layers] == list(transposed)
    for layer in found.layers:
        stored = next(value for name, value in file.items() if layer.name + ".weight" in name)
        weight = stored.numpy().T if transposed[layer.name] else stored.numpy()
        assert (layer.out_features, layer.in_features) == weight.shape
        assert layer.zeros == np.count_nonzero(weight == 0)
        assert layer.dead_outputs == sum(not row.any() for row in weight) >= 1
        assert layer.dead_inputs == sum(not column.any() for column in weight.T) >= 2
        for size, kept in layer.kept.items():
            groups = [row[at : at + size] for row in weight for at in range(0, len(row), size)]
            assert kept == max(np.count_nonzero(group) for group in groups)
        assert layer.kept.keys() == {4, 8}
    assert found.zeros == sum(layer.zeros for layer in found.layers) == found.block_zeros
    assert not found.refused
    free = {axis.kind: axis.free for axis in found.axes if axis.kind != "values"}
    assert free == {"heads": 0, "hidden": 2, "residual": 0}
    as_written = json.loads(json.dumps(found.as_dict()))
    assert as_written["axes"][0].keys() == {"kind", "name", "units", "free"}


def test_groups_that_do_not_divide_the_inputs_are_left_out() -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=12,
        intermediate_size=15,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    kept = {
        layer.role: tuple(layer.kept) for layer in inspect_model(LlamaForCausalLM(config)).layers
    }
    assert kept.pop("mlp.down_proj") == ()
    assert set(kept.values()) == {(4,)}


def test_the_record_is_that_of_the_model_that_is_read(
    checkpoint: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source comes before a directory of the same name, and may lead to a checkpoint of ours."""
    monkeypatch.chdir(checkpoint.parent)
    dense = ModelSource(checkpoint.name, lambda spec, progress: str(tiny_model_dir))
    ours = ModelSource("ours", lambda spec, progress: str(checkpoint))
    with MODEL_SOURCES.including(dense, ours):
        assert inspect_checkpoint(checkpoint.name).record is None
        assert inspect_checkpoint("ours").record == read_record(checkpoint)


def test_what_was_written_is_as_recorded(checkpoint: Path) -> None:
    found = inspect_checkpoint(str(checkpoint))
    assert not found.faults
    assert {layer.kept[4] for layer in found.layers} == {2}
    assert found.record is not None
    assert found.record.recipe == Recipe(metric="wanda", pattern="2:4")
    assert found.record.digest == found.digest == model_digest(load_model(str(checkpoint)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_checkpoint_is_read_in_its_own_dtype(
    tiny_model_dir: Path, tiny_tokens: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    narrow = load_model(str(tiny_model_dir), dtype=dtype)
    recipe = Recipe(metric="magnitude", sparsity=0.5)
    report = prune_model(narrow.model, recipe, tiny_tokens[:96].view(2, 48))
    out = save_pruned(narrow, recipe, report, tmp_path / "narrow")
    assert not inspect_checkpoint(str(out)).faults


def test_a_weight_that_came_back_is_found_three_times(checkpoint: Path) -> None:
    def grow(weights: dict[str, Tensor]) -> None:
        weight = weights[f"{LAYER}.weight"]
        weight[0, :4] = 1.0

    changed(checkpoint, grow)
    pattern, zeros, weights = inspect_checkpoint(str(checkpoint)).faults
    assert pattern == f"{LAYER!r} breaks the pattern 2:4 in 1 of 1,536 groups"
    assert zeros == f"{LAYER!r} has 3,070 zeros, and 3,072 were recorded"
    assert "not those that were written" in weights


def test_another_value_in_the_place_of_one_is_found(checkpoint: Path) -> None:
    def scale(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"] *= 1.001

    changed(checkpoint, scale)
    (fault,) = inspect_checkpoint(str(checkpoint)).faults
    assert "not those that were written" in fault


def test_a_layer_that_the_pattern_cannot_fit_is_found(checkpoint: Path) -> None:
    rewritten(checkpoint, lambda record: record["recipe"].update(pattern="3:6", sparsity=0.5))
    faults = inspect_checkpoint(str(checkpoint)).faults
    assert "the pattern '3:6' does not fit 'model.layers.0.self_attn.q_proj': " in faults[0]


def test_layers_that_differ_by_name_are_named(checkpoint: Path) -> None:
    rewritten(checkpoint, lambda record: record["report"]["layers"][0].update(name="other"))
    missing, more = inspect_checkpoint(str(checkpoint)).faults
    assert missing == "'model.layers.0.self_attn.q_proj' is not in the record"
    assert more == "'other' is in the record, and the model has no such layer"


def test_a_record_without_digests_is_read(checkpoint: Path) -> None:
    def older(record: dict[str, Any]) -> None:
        del record["sha256"], record["source_sha256"]

    rewritten(checkpoint, older)
    found = inspect_checkpoint(str(checkpoint))
    assert found.record is not None and found.record.digest is None and not found.faults


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.pop("report"), "report: field required"),
        (lambda record: record.pop("model"), "model: field required"),
        (lambda record: record["report"]["layers"][0].pop("zeros"), r"report.layers.0.zeros: "),
        (lambda record: record["report"].update(layers=3), "report.layers: input should be a"),
        (lambda record: record.update(sha256=3), "sha256: input should be a valid string"),
    ],
)
def test_a_damaged_record_is_refused(
    checkpoint: Path, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    rewritten(checkpoint, change)
    with pytest.raises(UsageError, match=f"{RECORD_FILE}', {says}"):
        read_record(checkpoint)


def test_a_record_that_is_no_recipe_is_refused(checkpoint: Path) -> None:
    (checkpoint / RECORD_FILE).write_text("[1]")
    with pytest.raises(UsageError, match="is not a JSON object"):
        inspect_checkpoint(str(checkpoint))


def test_the_source_is_the_model_before(tiny_model_dir: Path, tmp_path: Path) -> None:
    source = load_model(str(tiny_model_dir))
    before = model_digest(source)
    text = tmp_path / "text.txt"
    text.write_text("There are 12 roads and 3 rivers. " * 200)
    texts = Texts(calibration_text=str(text), calibration_samples=2, window_length=32)
    prune_to(tmp_path / "out", Recipe(sparsity=0.5), model=source, texts=texts)
    record = read_record(tmp_path / "out")
    assert record is not None and record.source == before != record.digest
