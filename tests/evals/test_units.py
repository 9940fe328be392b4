"""Costs of whole units judged: as pruning takes them, and as their papers have them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from curvature_reference import TOKENS, captured
from shaken_models import KINDS, shaken
from torch import Tensor

from gpprune.discover import Contender, Texts, compare, compare_recipes
from gpprune.errors import Unfit
from gpprune.evals import ModelFitness, UnitMasking, window_losses
from gpprune.primitives import METRIC, parse, unit_costs
from gpprune.prune import (
    Recipe,
    calibrate,
    couplings,
    free_units,
    linear_layers,
    prune_model,
    units_to_go,
)

READS = ["X", "A", "Ai", "Am", "Gk", "Gm", "Gx", "aaT", "ggT"]


def text(seed: int = 0) -> Tensor:
    return torch.randint(1, 64, (4, 24), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("update", ["none", "least-squares", "refit"])
@pytest.mark.parametrize("pattern", ["mlp", "mlp,heads", "free"])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_the_pruned_model(kind: str, pattern: str, update: str) -> None:
    model, judged = shaken(kind, 2), text(1)
    cost = "div(Gx, Ai)"
    found = calibrate(model, text(), [*READS, "Ay", "Gi"])
    masking = UnitMasking(model, found, sparsity=0.2, pattern=pattern)
    fitness = ModelFitness(masking, judged, update=update)
    trial = fitness.prepare(parse(cost, METRIC).canonical(None))
    pruned = copy.deepcopy(model)
    recipe = Recipe(metric=cost, sparsity=0.2, pattern=pattern, update=update)
    prune_model(pruned, recipe, text(), order="dense")
    wanted = window_losses(pruned, judged)
    assert torch.allclose(torch.tensor(trial(0, 4)).double(), wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(wanted, window_losses(model, judged), rtol=1e-3)


def test_formulas_that_take_the_same_units_are_one() -> None:
    model = shaken("llama", 2)
    masking = UnitMasking(model, calibrate(model, text(), READS), sparsity=0.2)
    one, same, other = (
        masking.identity(parse(each, METRIC).canonical(None))
        for each in ("div(Gx, Ai)", "sqrt(div(Gx, Ai))", "mul(Gx, A)")
    )
    assert one == same != other
    with pytest.raises(Unfit, match="constant"):
        masking.identity(parse("2", METRIC))


def _costs(name: str) -> dict[str, Tensor]:
    """Of each input of the MLPs' last layers what it costs, by the papers' equations, float64."""
    model = shaken("llama", 2)
    found = {}
    for layer_name, (a, g) in captured(model, TOKENS).items():
        if not layer_name.endswith("down_proj"):
            continue
        weight = linear_layers(model)[layer_name].weight.double()
        samples, length = TOKENS.shape
        if name == "flap":
            fluctuation = (a - a.mean(0)).square().mean(0) * weight.square().sum(0)
            found[layer_name] = (fluctuation - fluctuation.mean()) / fluctuation.std(correction=0)
        else:
            gradient = (g.T @ a) / (samples * (length - 1))
            found[layer_name] = (weight * gradient).abs().sum(0)
    return found


@pytest.mark.parametrize("name", ["flap", "llm-pruner"])
def test_published_costs_are_those_of_their_papers(name: str) -> None:
    model = shaken("llama", 2)
    recipe = Recipe(metric=name, sparsity=0.25, pattern="mlp")
    found = units_to_go(model, recipe, calibrate(model, TOKENS, recipe.reads))
    costs = _costs(name)
    count = sum(int(found[layer].inputs.sum()) for layer in costs)
    everything = torch.cat(list(costs.values()))
    lowest = everything.sort().values[count - 1]
    for layer, cost in costs.items():
        assert torch.equal(found[layer].inputs, cost <= lowest), layer
    assert 0 < count < len(everything)


def test_a_table_has_the_published_costs_and_measures_once(
    tiny_model_dir: Path, text_file: Path
) -> None:
    texts = Texts(str(text_file), str(text_file), 2, 32, 4)
    how = {"model": str(tiny_model_dir), "texts": texts, "update": "least-squares"}
    ends: list[str] = []

    def progress(label: str, done: int, total: int) -> None:
        ends.extend([label] if done == total else [])

    table = compare(pattern="mlp", sparsity=0.2, **how, **{"progress": progress})
    assert [row.name for row in table.rows[1:]] == list(unit_costs())
    assert ends.count("calibrating") == 1
    assert all(row.recipe and row.recipe.pattern == "mlp" for row in table.rows[1:])
    free = compare(pattern="free", sparsity=0.2, **how).rows[1:]
    assert {row.name for row in free} == {
        *("magnitude", "obs", "surgeon-columns", "kron-obd-columns", "llm-pruner")
    }


def test_a_cap_is_kept_where_recipes_are_compared(tiny_model_dir: Path, text_file: Path) -> None:
    texts = Texts(str(text_file), str(text_file), 2, 32, 4)
    how = {"metric": "surgeon-columns", "sparsity": 0.2, "pattern": "mlp"}
    recipes = [Contender(str(cap), Recipe(**how, cap=cap)) for cap in (1.0, 0.35)]
    free, capped = compare_recipes(recipes, model=str(tiny_model_dir), texts=texts).rows[1:]
    assert free.evaluation.mean != capped.evaluation.mean


def test_heads_go_too() -> None:
    model = shaken("qwen3", 2)
    masking = UnitMasking(model, calibrate(model, text(), READS), sparsity=0.1, pattern="heads")
    ModelFitness(masking, text(1)).evaluate(parse("mul(Gx, A)", METRIC))
    gone = dict(masking.masks(parse("mul(Gx, A)", METRIC)))
    assert sum(int(each.mask.sum()) for each in gone.values() if not isinstance(each, Tensor))
    assert not any(free_units(model, axis).any() for axis in couplings(model).offered)
