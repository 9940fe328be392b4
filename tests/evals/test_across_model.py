"""Fitnesses under one threshold for all layers: metrics, joint formulas, comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gpprune
from gpprune.cli import run as command
from gpprune.discover import JointGoal, MetricGoal, Texts, share_out
from gpprune.errors import Unfit, UsageError
from gpprune.evals import (
    AllocationMasking,
    JointMasking,
    Masking,
    MetricMasking,
    ModelFitness,
    masking,
    windows,
)
from gpprune.primitives import ALLOCATION, JOINT, Formula, parse, published
from gpprune.prune import Recipe, calibrate, linear_layers, load_model, prune_model

Statistics = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def folder(tiny_model_dir: Path) -> str:
    return str(tiny_model_dir)


@pytest.fixture(scope="module")
def model(folder: str) -> nn.Module:
    return load_model(folder).model


@pytest.fixture(scope="module")
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 2 * 32].view(2, 32)


@pytest.fixture(scope="module")
def statistics(model: nn.Module, sequences: Tensor) -> Statistics:
    return calibrate(model, sequences, ["X", "Y", "G"])


@pytest.fixture
def across(model: nn.Module, statistics: Statistics) -> MetricMasking:
    return MetricMasking(model, statistics, sparsity=0.5, pattern="model")


def masks_of(which: Masking, formula: Formula) -> dict[str, Tensor]:
    return {layer.name: mask.clone() for layer, mask in which.masks(formula)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria", "pruner-zero"])
def test_a_fitness_prunes_as_the_command(
    name: str,
    folder: str,
    across: MetricMasking,
    sequences: Tensor,
    tiny_tokens: Tensor,
) -> None:
    fitness = ModelFitness(across, windows(tiny_tokens, 2, 32))
    fitness.prepare(published[name].canonical("model"))
    pruned = load_model(folder).model
    recipe = Recipe(metric=name, sparsity=0.5, pattern="model")
    prune_model(pruned, recipe, sequences, order="dense")
    for layer_name, layer in linear_layers(pruned).items():
        assert torch.equal(linear_layers(fitness.model)[layer_name].weight, layer.weight)


@pytest.mark.parametrize("name", ["wanda", "ria"])
def test_scores_that_are_not_held_give_the_same_masks(
    name: str,
    model: nn.Module,
    statistics: Statistics,
    across: MetricMasking,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masking, "_HELD", 0)
    other = MetricMasking(model, statistics, sparsity=0.5, pattern="model")
    assert same(masks_of(across, published[name]), masks_of(other, published[name]))


@pytest.mark.parametrize("name", ["magnitude", "wanda", "ria"])
def test_it_is_a_layers_pattern_with_the_global_allocation(
    name: str, model: nn.Module, statistics: Statistics
) -> None:
    """Up to ties and fractions of a weight, where no layer reaches its bound."""
    metric = published[name]
    across = MetricMasking(model, statistics, sparsity=0.2, pattern="model")
    allocated = AllocationMasking(model, statistics, metric=metric, sparsity=0.2, pattern="layer")
    theirs = masks_of(allocated, parse("threshold(S)", ALLOCATION))
    ours = masks_of(across, metric)
    for layer in ours:
        assert abs(int(ours[layer].sum()) - int(theirs[layer].sum())) <= 1
        assert int((ours[layer] != theirs[layer]).sum()) <= 1


def test_layers_whose_scores_are_all_equal_have_an_order_among_each_other(
    across: MetricMasking,
) -> None:
    means = parse("rowmean(colmean(abs(W)))")
    masks = masks_of(across, means)
    assert (
        sum(int(mask.sum()) for mask in masks.values())
        == sum(mask.numel() for mask in masks.values()) // 2
    )
    with pytest.raises(Unfit, match="all scores of the model are 1"):
        masks_of(across, parse("exp(sub(W, W))"))


def test_a_metric_and_no_allocation_are_the_metric(
    model: nn.Module, statistics: Statistics, across: MetricMasking
) -> None:
    joint = JointMasking(model, statistics, sparsity=0.5, pattern="model")
    alone = parse("joint(mul(abs(W), X), 0)", JOINT)
    assert same(masks_of(across, published["wanda"]), masks_of(joint, alone))
    assert joint.fingerprint(alone) == across.fingerprint(published["wanda"])
    both = parse("joint(mul(abs(W), X), spread(depth, 0.2))", JOINT)
    for refused in (masks_of, lambda which, formula: which.fingerprint(formula)):
        with pytest.raises(UsageError, match=r"no room for the allocation 'spread\(depth, 0.2\)'"):
            refused(joint, both)


def test_allocations_are_refused(model: nn.Module, statistics: Statistics) -> None:
    with pytest.raises(UsageError, match="'model' shares the sparsity out by itself"):
        AllocationMasking(
            model, statistics, metric=published["wanda"], sparsity=0.5, pattern="model"
        )
    with pytest.raises(UsageError, match="'model' shares the sparsity out by itself"):
        JointGoal(pattern="model").check()
    MetricGoal(pattern="model").check()


@pytest.fixture
def how(folder: str, text_file: Path) -> dict[str, Any]:
    texts = Texts(str(text_file), str(text_file), 3, 32, 4)
    return {"model": folder, "texts": texts}


@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_it_stands_beside_other_patterns_in_a_comparison(how: dict[str, Any], order: str) -> None:
    figures = [
        gpprune.compare(["wanda"], sparsity=0.6, pattern=pattern, order=order, **how)
        .row("wanda", 0.6)
        .evaluation.figure
        for pattern in ("layer", "model")
    ]
    assert figures[0] != figures[1]
    number = gpprune.compare(
        ["wanda"], allocations=["0.3"], sparsity=0.6, pattern="model", order=order, **how
    )
    assert number.row("0.3", 0.6).evaluation.figure == figures[1]


def test_what_it_gives_each_layer_is_shown(how: dict[str, Any]) -> None:
    shared = share_out(["uniform"], metric="wanda", sparsity=0.6, pattern="model", **how)
    (share,) = shared.shares
    assert sum(share.zeros) == round(0.6 * sum(shared.sizes))
    assert len({round(own, 3) for own in shared.layer_sparsities(share)}) > 1
    with pytest.raises(UsageError, match="'model' shares the sparsity out by itself"):
        share_out(["owl"], metric="wanda", sparsity=0.6, pattern="model", **how)


def test_a_metric_is_searched_for_under_one_threshold(
    folder: str, text_file: Path, tmp_path: Path
) -> None:
    text = ["--text", str(text_file), "--calibration-text", str(text_file), "--model", folder]
    few = ["--windows", "2", "--window-length", "32", "--calibration-samples", "2"]
    brief = ["--population", "8", "--generations", "1", "--seed", "1"]
    run = ["evolve", "metric", *text, *few, *brief, "--pattern", "model"]
    assert command([*run, "--out", str(tmp_path / "run")]) == 0
