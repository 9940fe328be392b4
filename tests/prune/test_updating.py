"""Recipes with weight updates on whole models: budgets, orders, and what the updates are worth."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from gpprune.prune import (
    UPDATES,
    Recipe,
    linear_layers,
    prune_model,
)


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("order", ["dense", "sequential", "true-sequential"])
@pytest.mark.parametrize("update", list(UPDATES))
@pytest.mark.parametrize(
    ("pattern", "sparsity", "allocation"),
    [("row", 0.29, "uniform"), ("layer", 0.5, "atp(0.3)"), ("2:4", None, "uniform")],
)
def test_every_update_meets_the_budget(
    sequences: Tensor,
    family: str,
    order: str,
    update: str,
    pattern: str,
    sparsity: float | None,
    allocation: str,
) -> None:
    recipe, plain = (
        Recipe.make(
            metric="wanda", pattern=pattern, sparsity=sparsity, allocation=allocation, update=name
        )
        for name in (update, "none")
    )
    found, wanted = (prune_model(tiny(family), r, sequences, order=order) for r in (recipe, plain))
    assert [layer.zeros for layer in found.layers] == [layer.zeros for layer in wanted.layers]
    assert found.zeros == wanted.zeros > 0


def test_sequential_updates_keep_the_outputs_better(sequences: Tensor) -> None:
    dense = tiny("llama")
    with torch.no_grad():
        wanted = dense(sequences).logits

        def error(update: str) -> float:
            model = tiny("llama")
            prune_model(model, Recipe(sparsity=0.5, update=update), sequences)
            return float((model(sequences).logits - wanted).norm())

        plain = error("none")
        assert all(error(name) < plain for name in UPDATES if name not in ("none", "independent"))


def test_a_damping_is_used(sequences: Tensor) -> None:
    weights = []
    for damping in (0.01, 100.0):
        model = tiny("llama")
        recipe = Recipe(sparsity=0.5, update="least-squares", damp_inputs=damping)
        prune_model(model, recipe, sequences, order="dense")
        weights.append(next(iter(linear_layers(model).values())).weight)
    before = next(iter(linear_layers(tiny("llama")).values())).weight
    kept = weights[1] != 0
    far, near = (float((w - before)[kept].norm()) for w in weights)
    assert near < 0.1 * far
