"""Dead units taken out of a model's weights: what is left computes the same, and reloads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shaken_models import KINDS, logits, shaken
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    Loaded,
    Recipe,
    couplings,
    linear_layers,
    load_model,
    prune_model,
    prune_report,
    save_again,
    save_pruned,
    shrink,
)
from gpprune.prune.model.shapes import SHAPES_FILE

WITHOUT_CODE = {"gpt2", "opt"}  # their configurations cannot say that there are fewer heads


@torch.no_grad()
def deaden(model: nn.Module, hidden: tuple[int, int], heads: tuple[int, int], seed: int) -> None:
    """Let nothing read some hidden channels and heads of both blocks."""
    generator = torch.Generator().manual_seed(seed)
    counts = {"hidden": iter(hidden), "heads": iter(heads)}
    for axis in couplings(model).offered:
        if axis.kind in counts:
            gone = torch.randperm(axis.units, generator=generator)[: next(counts[axis.kind])]
            place = axis.places[0]
            weight = model.get_parameter(place.parameter).data
            weight.index_fill_(place.dim, place.index[gone].flatten(), 0)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def widths(model: nn.Module) -> list[tuple[int, int]]:
    return [(layer.out_features, layer.in_features) for layer in linear_layers(model).values()]


@settings(max_examples=40)  # some of 0.3 s each
@given(
    st.sampled_from(KINDS),
    st.sampled_from([2, 4]),
    st.booleans(),
    st.tuples(st.integers(0, 47), st.integers(0, 47)),
    st.tuples(st.integers(0, 1), st.integers(0, 1)),
    st.booleans(),
    st.integers(0, 99),
)
def test_what_is_left_computes_the_same(
    kind: str,
    keys: int,
    bias: bool,
    hidden: tuple[int, int],
    heads: tuple[int, int],
    uniform: bool,
    seed: int,
) -> None:
    model = shaken(kind, keys, bias=bias)
    deaden(model, hidden, heads, seed)
    before, parameters = logits(model), count(model)
    found = shrink(model, uniform=uniform)
    assert apart(logits(model), before) < 1e-5
    assert (found.before, found.after) == (parameters, count(model))
    fixed = uniform and kind in WITHOUT_CODE
    goes = {"hidden": hidden, "heads": (0, 0) if fixed else heads}
    for name, dead in (("hidden", hidden), ("heads", heads)):
        axes = [axis for axis in found.axes if axis.kind == name]
        assert tuple(axis.dead for axis in axes) == dead
        wanted = (min(goes[name]),) * 2 if uniform else goes[name]
        assert tuple(axis.removed for axis in axes) == wanted
    assert bool(found.refused) == (fixed and min(heads) > 0)
    if uniform:
        assert found.plain
    # a second look finds nothing that the first left, but for what keeps blocks alike
    again = shrink(model, uniform=uniform)
    assert again.before == again.after == found.after
    assert again.plain == found.plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("uniform", [False, True])
def test_a_small_checkpoint_reloads_and_goes_on(
    kind: str, uniform: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = shaken(kind, 2, words=len(tiny_tokenizer))
    deaden(model, (10, 20), (1, 1), 0)
    before = logits(model)
    found = shrink(model, uniform=uniform)
    loaded = Loaded(model, tiny_tokenizer, "shaken")
    folder = save_again(loaded, tmp_path / "small", record=None, report=prune_report(model, 0.0))
    assert (folder / SHAPES_FILE).exists() == (not found.plain)
    if uniform:
        plain = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert apart(logits(plain), before) < 1e-5
    again = load_model(str(folder))
    assert apart(logits(again.model), before) < 1e-5
    assert widths(again.model) == widths(model)
    recipe = Recipe(metric="wanda", sparsity=0.5, update="least-squares", shots=2)
    tokens = torch.randint(1, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    report = prune_model(again.model, recipe, tokens, keep=tmp_path / "shots")
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    save_pruned(again, recipe, report, tmp_path / "pruned")
    last = load_model(str(tmp_path / "pruned"))
    assert torch.equal(logits(last.model), logits(again.model))


def test_of_what_is_all_dead_one_unit_stays() -> None:
    model = shaken("llama", 2)
    deaden(model, (48, 0), (2, 0), 0)
    before = logits(model)
    assert shrink(model).counts() == {"heads": (4, 1, 1), "hidden": (96, 47, 47)}
    assert apart(logits(model), before) < 1e-5


def zero(name: str, rows: slice, bias: float | None = None) -> Callable[[nn.Module], None]:
    """Let some outputs of a layer of the first block depend on nothing."""

    def change(model: nn.Module) -> None:
        (layer,) = (
            layer
            for layer in linear_layers(model).values()
            if layer.block == 0 and layer.name.endswith(name)
        )
        layer.weight[rows] = 0
        if bias is not None:
            layer.module.bias.data[rows] = bias  # type: ignore[union-attr]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "dead"),
    [
        ("llama", zero("gate_proj", slice(0, 5)), {"hidden": 5}),
        ("llama", zero("up_proj", slice(3, 9)), {"hidden": 6}),
        ("llama", zero("v_proj", slice(8, 16)), {"heads": 1}),
        ("llama", zero("q_proj", slice(0, 16)), {}),  # attends to all tokens alike
        ("opt", zero("fc1", slice(0, 7), -0.5), {"hidden": 7}),
        ("opt", zero("fc1", slice(0, 7), 0.5), {}),  # constant, and not zero
    ],
)
def test_units_that_are_always_zero_are_dead(
    kind: str, change: Callable[[nn.Module], None], dead: dict[str, int]
) -> None:
    model = shaken(kind, 2)
    change(model)
    before = logits(model)
    found = shrink(model)
    assert {kind: own[2] for kind, own in found.counts().items() if own[2]} == dead
    assert apart(logits(model), before) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_keeps_its_dtype(dtype: torch.dtype) -> None:
    model = shaken("llama", 2)
    deaden(model, (5, 7), (1, 0), 0)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    assert shrink(model).counts() == {"heads": (4, 1, 1), "hidden": (96, 12, 12)}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    for name, value in model.named_parameters():
        assert value.shape != parameters[name].shape or torch.equal(value, parameters[name])


def test_what_was_left_undone_is_said() -> None:
    model = shaken("gpt2")
    deaden(model, (5, 7), (1, 1), 0)
    said = " ".join(shrink(model, uniform=True).sentences)
    assert "heads of 2 layers stay: the model's configuration cannot say" in said
    assert "2 dead units stay, so that all blocks are alike" in said
    model = shaken("gpt2")
    deaden(model, (5, 7), (1, 1), 0)
    (sentence,) = shrink(model).sentences
    assert "plain transformers does not" in sentence


def test_nothing_dead_is_nothing_done() -> None:
    model = shaken("llama")
    found = shrink(model)
    assert found.plain and found.before == found.after and not found.sentences


@pytest.fixture
def small(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = shaken("opt", words=len(tiny_tokenizer))
    deaden(model, (10, 20), (1, 1), 0)
    shrink(model)
    loaded = Loaded(model, tiny_tokenizer, "shaken")
    return save_again(loaded, tmp_path / "small", record=None, report=prune_report(model, 0.0))


def _edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / SHAPES_FILE
    stored = json.loads(path.read_text())
    edit(stored)
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda s: s["shapes"].popitem(), "is not the one that"),
        (lambda s: s["shapes"].update({next(iter(s["shapes"])): [3, 3]}), "says"),
        (lambda s: s["attributes"].update({"nowhere": {"heads": 2}}), "is no module"),
        (lambda s: s["attributes"].update({"model.decoder": {"forward": 2}}), "has no number"),
    ],
)
def test_shapes_that_are_not_the_weights_are_refused(
    small: Path, edit: Callable[[dict[str, Any]], Any], said: str
) -> None:
    _edited(small, edit)
    with pytest.raises(GppruneError, match=said):
        load_model(str(small))


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.pop("shapes"),
        lambda s: s.update({"more": 1}),
        lambda s: s["shapes"].update({"a": [0, 3]}),
    ],
)
def test_a_damaged_file_of_shapes_is_named(
    small: Path, edit: Callable[[dict[str, Any]], Any]
) -> None:
    _edited(small, edit)
    with pytest.raises(UsageError, match=f"{SHAPES_FILE}' is damaged"):
        load_model(str(small))


def test_without_the_file_the_shapes_are_a_damaged_checkpoint(small: Path) -> None:
    (small / SHAPES_FILE).unlink()
    with pytest.raises(GppruneError, match=r"other shapes than config\.json asks for"):
        load_model(str(small))
