"""A fitness prunes under a weight update as the command does."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
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


@pytest.mark.parametrize("update", [name for name in UPDATES if name != "none"])
def test_one_copy_is_judged_with_and_without_the_update(sequences: Tensor, update: str) -> None:
    model, windows, wanda = tiny("llama"), sequences[:2], metric("wanda")
    statistics = calibrate(model, sequences, UPDATES[update].reads | {"X"})
    masking = MetricMasking(model, statistics, sparsity=0.5, pattern="layer")
    fitness = ModelFitness(masking, windows, update=update)
    updated = fitness.prepare(wanda)(0, 2)
    alone = fitness.under(masking, "none")
    assert alone.model is fitness.model
    own = ModelFitness(masking, windows)
    # the formula's own masks, also where the update has chosen others
    assert alone.prepare(wanda)(0, 2) == own.prepare(wanda)(0, 2) != updated
    assert alone.estimate(wanda) is None
    # neither takes the other's losses for its own
    assert fitness.prepare(wanda)(0, 2) == updated
    assert alone.under(masking, update).prepare(wanda)(0, 2) == updated
    assert fitness.under(masking, update) is fitness.under(masking) is fitness
    trial = fitness.prepare(wanda)
    alone.prepare(wanda)
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)
    with pytest.raises(UsageError, match="repair"):
        fitness.under(masking, "repair")
