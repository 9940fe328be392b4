"""How many weights of each layer go in each of several shots: bounds, caps and coarse grains."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.prune import Recipe, linear_layers, prune_model
from gpprune.prune.allocate.budget import total_zeros
from gpprune.prune.zeros import clipped, recipe_zeros


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


def _with_a_small_block(factor: float = 1e-3, family: str = "llama") -> nn.Module:
    """A model whose first block's weights would go first, and whole."""
    model = tiny(family)
    for layer in linear_layers(model).values():
        if layer.block == 0:
            layer.write(layer.weight * factor)
    return model


def test_no_layer_gives_up_more_than_it_has(sequences: Tensor) -> None:
    recipe = Recipe(
        metric="magnitude", allocation="snip", pattern="layer", sparsity=0.8, shots=3, cap=0.4
    )
    model = _with_a_small_block()
    report = prune_model(model, recipe, sequences, order="dense")
    weights = report.size
    assert [s.zeros for s in report.shots] == [total_zeros(0.8 * p, weights) for p in recipe.parts]
    for name, layer in linear_layers(model).items():
        assert int((layer.weight == 0).sum()) <= math.ceil(0.99 * layer.weight.numel()), name


@pytest.mark.parametrize(
    ("pattern", "allocation"),
    [("model", "uniform"), ("layer", "spread(depth, 0.1)"), ("N:8", "spread(depth, 0.1)")],
)
def test_a_shot_that_the_cap_leaves_no_room_is_refused(
    sequences: Tensor, pattern: str, allocation: str
) -> None:
    tight = Recipe(
        metric="magnitude", pattern=pattern, allocation=allocation, sparsity=0.9, shots=3, cap=0.5
    )
    model = tiny("llama")
    held = {
        name: torch.zeros_like(layer.weight, dtype=torch.bool)
        for name, layer in linear_layers(model).items()
    }
    for name, layer in linear_layers(model).items():
        if layer.block == 0:
            held[name] |= torch.arange(layer.in_features) % 8 < 7
    with pytest.raises(GppruneError, match=r"the cap 0\.5 leaves room for a share of 0\.\d+ of"):
        recipe_zeros(model, tight, sequences, {}, held=held)
    roomy = tight.model_copy(update={"cap": 0.9})
    zeros = recipe_zeros(model, roomy, sequences, {}, held=held)
    assert sum(zeros.values()) <= total_zeros(0.9, sum(mask.numel() for mask in held.values()))
    for name, mask in held.items():
        assert int(mask.sum()) <= zeros[name] <= int(mask.sum()) + 0.9 * mask.numel()


def test_the_shots_of_a_tight_cap_end_in_an_error(sequences: Tensor) -> None:
    recipe = Recipe(metric="magnitude", pattern="model", sparsity=0.9, shots=3, cap=0.5)
    with pytest.raises(GppruneError, match="a greater cap"):
        prune_model(_with_a_small_block(), recipe, sequences, order="dense")
    roomy = recipe.model_copy(update={"cap": 0.95})
    report = prune_model(_with_a_small_block(), roomy, sequences, order="dense")
    assert report.zeros == total_zeros(0.9, report.size)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("allocation", ["owl(5,0.3)", "atp(0.3)", "snip"])
def test_coarse_zeros_never_pass_the_target(
    sequences: Tensor, family: str, allocation: str
) -> None:
    recipe = Recipe(
        metric="wanda", pattern="N:8", allocation=allocation, unit="layer", sparsity=0.6, shots=5
    )
    report = prune_model(tiny(family), recipe, sequences, order="dense")
    for shot, part in zip(report.shots, recipe.parts, strict=True):
        assert 0.6 * part - 0.01 < shot.sparsity <= 0.6 * part


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 3)),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 3),
)
def test_counts_are_brought_between_bounds(
    layers: list[tuple[int, int, int, int]], rest: int
) -> None:
    zeros = [count * grain for count, _, _, grain in layers]
    least = [min(low, high) * grain for _, low, high, grain in layers]
    most = [max(low, high) * grain for _, low, high, grain in layers]
    grains = [grain for *_, grain in layers]
    total = sum(zeros) + rest
    found = clipped(zeros, least, most, grains, total)
    for count, low, high, grain in zip(found, least, most, grains, strict=True):
        assert low <= count <= high and count % grain == 0
    assert sum(found) <= max(total, sum(least))
    if set(grains) == {1} and sum(least) <= total <= sum(most):
        assert sum(found) == total
