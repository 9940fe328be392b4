"""What a fitness estimates of a formula, from the curvature and without a window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import tiny
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gpprune.compile import kernel
from gpprune.errors import Unfit
from gpprune.evals import AllocationMasking, JointMasking, Masking, MetricMasking, ModelFitness
from gpprune.gp import Screened
from gpprune.primitives import JOINT, allocation, metric, parse
from gpprune.prune import (
    UPDATES,
    Choice,
    Damping,
    Update,
    calibrate,
    is_local,
    linear_layers,
    prune_layer,
)

FORMULA = "mul(abs(W), X)"
HOW: dict[str, Any] = {"sparsity": 0.5, "pattern": "layer"}
CURVED = [name for name, update in UPDATES.items() if update.foretold_by]


@pytest.fixture(scope="module")
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def statistics(sequences: Tensor) -> Any:
    return calibrate(tiny("llama"), sequences, ["X", "Gk", "aaT", "ggT"])


def fitness_of(sequences: Tensor, statistics: Any, update: str, **changes: Any) -> ModelFitness:
    masking = MetricMasking(tiny("llama"), statistics, **{**HOW, **changes})
    return ModelFitness(masking, sequences[:2], update=update, damping=Damping(0.2, 0.3))


def increase(weight: Tensor, new: Tensor, A: Tensor, G: Tensor) -> float:
    """1/2 sum of D_ij G_ik D_kl A_jl in float64, entry by entry."""
    change = (new - weight).double()
    factor = G.double() if G.ndim == 2 else torch.diag(G.double())
    return float(torch.einsum("ij,ik,kl,jl->", change, factor, change, A.double())) / 2


@pytest.mark.parametrize("update", CURVED)
def test_it_is_the_predicted_increase_of_the_sampled_blocks(
    sequences: Tensor, statistics: Any, update: str
) -> None:
    fitness = fitness_of(sequences, statistics, update)
    found = fitness.estimate(parse(FORMULA))
    entry, damping, wanted = UPDATES[update], Damping(0.2, 0.3), 0.0
    masks = MetricMasking(tiny("llama"), statistics, **HOW)
    for layer, mask in masks.masks(parse(FORMULA)):  # it has two blocks, all of which are sampled
        known = statistics[layer.name]
        goes: Any = mask
        if entry.choose is not None:
            score = kernel(parse(FORMULA))
            goes = Choice(score, known, masks.pattern, int(mask.sum()), is_local(parse(FORMULA)))
        new = prune_layer(layer.weight, goes, known, update, damping=damping)
        G = known["ggT"] if "ggT" in entry.reads else known["Gk"]
        wanted += increase(layer.weight, new, known["aaT"], G)
    assert found is not None and found > 0
    assert found == pytest.approx(wanted, rel=1e-4)
    assert isinstance(fitness, Screened)


def test_a_few_blocks_stand_for_many(sequences: Tensor) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny("llama").config.to_dict(), "num_hidden_layers": 12})
    model = LlamaForCausalLM(config).eval()
    measured = calibrate(model, sequences, ["X", "Gk", "aaT"])
    fitness = ModelFitness(MetricMasking(model, measured, **HOW), sequences, update="least-squares")
    found = fitness.estimate(parse(FORMULA))
    layers = linear_layers(model)
    blocks = {layers[name].block for name in layers}
    masks = fitness.masking.masks(parse(FORMULA))
    by_block = dict.fromkeys(blocks, 0.0)
    for layer, mask in masks:
        known = measured[layer.name]
        new = prune_layer(layer.weight, mask, known, "least-squares")
        by_block[layer.block] += increase(layer.weight, new, known["aaT"], known["Gk"])
    assert found == pytest.approx(sum(by_block[block] for block in (1, 4, 7, 10)), rel=1e-4)
    assert len(blocks) == 12


@pytest.mark.parametrize("kind", ["metric", "allocation", "joint"])
def test_masks_are_asked_for_once(sequences: Tensor, statistics: Any, kind: str) -> None:
    model, asked = tiny("llama"), []
    masking: Masking
    if kind == "metric":
        masking, formula = MetricMasking(model, statistics, **HOW), parse(FORMULA)
    elif kind == "allocation":
        masking = AllocationMasking(model, statistics, metric=metric("wanda"), **HOW)
        formula = allocation("spread(depth, 0.2)")
    else:
        masking = JointMasking(model, statistics, **HOW)
        formula = parse(f"joint({FORMULA}, spread(depth, 0.2))", JOINT)
    own = masking.masks

    def counted(formula: Any) -> Any:
        asked.append(formula.text)
        return own(formula)

    masking.masks = counted  # type: ignore[method-assign]
    fitness = ModelFitness(masking, sequences[:2], update="refit")
    estimate = fitness.estimate(formula)
    losses = fitness.prepare(formula)(0, 2)
    assert asked == [formula.text]
    fresh = ModelFitness(masking, sequences[:2], update="refit")
    assert fresh.prepare(formula)(0, 2) == losses  # as without an estimate
    # an estimate does not depend on what was judged before, or a resumed search would differ
    assert fitness.estimate(formula) == estimate
    fitness.estimate(allocation("uniform") if kind == "allocation" else formula)
    assert fitness.prepare(formula)(0, 2) == losses


def test_an_estimate_writes_nothing_and_ends_no_trial(sequences: Tensor, statistics: Any) -> None:
    fitness = fitness_of(sequences, statistics, "refit")
    trial = fitness.prepare(parse(FORMULA))
    before = [layer.weight.clone() for layer in linear_layers(fitness.model).values()]
    fitness.estimate(parse("abs(W)"))
    after = [layer.weight for layer in linear_layers(fitness.model).values()]
    assert all(map(torch.equal, before, after))
    assert trial(0, 1) == fitness.prepare(parse(FORMULA))(0, 1)


def test_no_curvature_no_estimate(sequences: Tensor, statistics: Any) -> None:
    assert fitness_of(sequences, statistics, "none").estimate(parse(FORMULA)) is None
    for update, name in (("refit", "ggT"), ("least-squares", "Gk"), ("refit", "aaT")):
        lacking = {
            layer: {key: value for key, value in known.items() if key != name}
            for layer, known in statistics.items()
        }
        assert fitness_of(sequences, lacking, update).estimate(parse(FORMULA)) is None
    own = Update("own", "reads no curvature", UPDATES["none"].apply, frozenset({"X"}))
    with UPDATES.including(own):
        assert fitness_of(sequences, statistics, "own").estimate(parse(FORMULA)) is None


def test_what_cannot_be_pruned_by_cannot_be_estimated(sequences: Tensor, statistics: Any) -> None:
    with pytest.raises(Unfit, match="no terminal"):
        fitness_of(sequences, statistics, "refit").estimate(parse("abs(1)"))


def test_better_metrics_have_lower_estimates(sequences: Tensor, statistics: Any) -> None:
    fitness = fitness_of(sequences, statistics, "refit")
    good, bad = (fitness.estimate(parse(text)) for text in (FORMULA, f"neg({FORMULA})"))
    assert good is not None and bad is not None and good < bad
    less = fitness_of(sequences, statistics, "refit", sparsity=0.3).estimate(parse(FORMULA))
    assert less is not None and less < good
