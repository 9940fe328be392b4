"""A fitness prunes under a weight update as the command does."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from gpprune.evals import AllocationMasking, JointMasking, MetricMasking, ModelFitness
from gpprune.primitives import LANGUAGES, allocation, metric, parse
from gpprune.prune import UPDATES, Damping, Recipe, calibrate, linear_layers, prune_model


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("update", list(UPDATES))
@pytest.mark.parametrize("kind", ["metric", "allocation", "joint"])
def test_a_fitness_prunes_as_the_dense_order(sequences: Tensor, update: str, kind: str) -> None:
    model, wanted = tiny("llama"), tiny("llama")
    statistics = calibrate(model, sequences, UPDATES[update].reads | {"X"})
    shared = "uniform" if kind == "metric" else "spread(depth, 0.2)"
    how = {"sparsity": 0.5, "pattern": "layer"}
    if kind == "metric":
        masking, formula = MetricMasking(model, statistics, **how), metric("wanda")
    elif kind == "allocation":
        masking = AllocationMasking(model, statistics, metric=metric("wanda"), **how)
        formula = allocation(shared)
    else:
        masking = JointMasking(model, statistics, **how)
        formula = parse(f"joint(mul(abs(W), X), {shared})", LANGUAGES["joint"])
    damping = Damping(0.2, 0.3)
    fitness = ModelFitness(masking, sequences[:2], update=update, damping=damping)
    losses = fitness.prepare(formula)(0, 2)
    recipe = Recipe(
        metric="wanda", allocation=shared, update=update, damp_inputs=0.2, damp_outputs=0.3, **how
    )
    prune_model(wanted, recipe, sequences, order="dense")
    for name, layer in linear_layers(fitness.model).items():
        assert torch.allclose(layer.weight, linear_layers(wanted)[name].weight, atol=1e-5), name
    evaluated = fitness.evaluate(formula, sequences[:2])[0]
    assert evaluated.mean == pytest.approx(sum(losses) / 2)
