"""The pruning step: zeros, updates, where the result is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.errors import Unfit, UsageError
from gpprune.prune import (
    UPDATES,
    Damping,
    Recipe,
    Update,
    calibrate,
    linear_layers,
    load_model,
    prune_layer,
    prune_model,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def layer(seed: int, rows: int = 5, columns: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, torch.rand(rows, columns, generator=generator) < 0.5


def exactly(found: Tensor, wanted: Tensor) -> None:
    """Equal in every bit, which tells -0 from 0."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.element_size()]
    assert found.dtype == wanted.dtype
    assert torch.equal(found.contiguous().view(width), wanted.contiguous().view(width))


@given(st.integers(0, 1000), st.sampled_from(DTYPES), st.booleans(), st.booleans())
def test_zeros_are_exact_wherever_the_weight_is_written(
    seed: int, dtype: torch.dtype, across: bool, stale: bool
) -> None:
    weight, mask = layer(seed)
    before = weight.clone()
    out = torch.empty(7, 5, dtype=dtype).t() if across else torch.empty(5, 7, dtype=dtype)
    out.fill_(torch.nan if stale else -1)
    assert prune_layer(weight, mask, {}, "none", out=out) is out
    exactly(out, before.to(dtype).masked_fill(mask, 0.0))
    exactly(weight, before)


@pytest.mark.parametrize("across", [False, True])
def test_a_weight_is_pruned_in_place(across: bool) -> None:
    weight, mask = layer(0)
    wanted = weight.masked_fill(mask, 0)
    held = weight.t().contiguous().t() if across else weight
    exactly(prune_layer(held, mask, {}, "none", out=held), wanted)
    exactly(held, wanted)


def test_without_a_place_the_result_is_new() -> None:
    weight, mask = layer(0)
    before = weight.clone()
    exactly(prune_layer(weight, mask, {}), before.masked_fill(mask, 0))
    exactly(weight, before)
    parameter = torch.nn.Parameter(weight)
    assert not prune_layer(parameter, mask, {}).requires_grad


def doubled(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    return weight * 2 + statistics["X"]


DOUBLE = Update("double", "twice the weight, and X", doubled, frozenset({"X"}))


def test_an_update_gives_the_weights_that_stay() -> None:
    weight, mask = layer(0)
    statistics = {"X": torch.arange(7.0), "Y": torch.ones(5)}
    found = prune_layer(weight, mask, statistics, DOUBLE)
    exactly(found, (weight * 2 + torch.arange(7.0)).masked_fill(mask, 0))
    with UPDATES.including(DOUBLE):
        exactly(prune_layer(weight, mask, statistics, "double"), found)
        exactly(prune_layer(weight, mask, statistics, "double", out=weight), found)


def test_an_update_may_leave_anything_where_the_mask_is() -> None:
    weight, mask = layer(0)
    wild = Update("wild", "", lambda w, m, s, d: torch.where(m, torch.nan, w))
    exactly(prune_layer(weight, mask, {}, wild), weight.masked_fill(mask, 0))


def test_what_does_not_fit_is_named() -> None:
    weight, mask = layer(0)
    with pytest.raises(UsageError, match="no weight update 'obs': choose from none"):
        prune_layer(weight, mask, {}, "obs")
    with pytest.raises(UsageError, match="'double' reads X, which was not measured"):
        prune_layer(weight, mask, {"Y": torch.ones(5)}, DOUBLE)
    with pytest.raises(UsageError, match=r"mask is torch.bool of shape \[7, 5\].*bool \[5, 7\]"):
        prune_layer(weight, mask.t(), {})
    with pytest.raises(UsageError, match=r"mask is torch\.float32"):
        prune_layer(weight, mask.float(), {})
    with pytest.raises(UsageError, match=r"'flat' makes a \[35\]"):
        prune_layer(weight, mask, {}, Update("flat", "", lambda w, m, s, d: w.flatten()))


@pytest.mark.parametrize("folder", ["tiny_model_dir", "tiny_gpt2_dir"])
@pytest.mark.parametrize("order", ["sequential", "dense"])
@pytest.mark.parametrize("allocation", ["uniform", "atp"])
def test_a_recipes_update_is_used_and_gets_what_it_reads(
    request: pytest.FixtureRequest, tiny_tokens: Tensor, folder: str, order: str, allocation: str
) -> None:
    path: Path = request.getfixturevalue(folder)
    dense, model = (load_model(str(path)).model for _ in range(2))
    tokens = tiny_tokens[: 2 * 32].view(2, 32)
    with UPDATES.including(DOUBLE):
        recipe = Recipe(metric="abs(W)", sparsity=0.5, update="double", allocation=allocation)
        assert recipe.reads == {"X"}
        prune_model(model, recipe, tokens, order=order)
    name, first = next(iter(linear_layers(dense).items()))
    found = linear_layers(model)[name].weight
    wanted = first.weight * 2 + calibrate(dense, tokens, ["X"])[name]["X"]
    assert (found == 0).any() and torch.allclose(found, wanted.masked_fill(found == 0, 0))


def test_an_update_that_ruins_weights_is_refused() -> None:
    ruin = Update(
        "ruin", "every weight is NaN", lambda weight, mask, statistics, damping: weight * math.nan
    )
    weight, mask = torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    with pytest.raises(Unfit, match="'ruin' makes weights NaN or infinite"):
        prune_layer(weight, mask, {}, ruin)
