"""Fitnesses under a pattern of whole input features: the copy loses whole columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from columns_pattern import COLUMNS, has_whole_columns
from torch import Tensor, nn

from gpprune.evals import (
    AllocationMasking,
    JointMasking,
    MetricMasking,
    ModelFitness,
    windows,
)
from gpprune.primitives import JOINT, parse, published
from gpprune.prune import PATTERNS, Recipe, calibrate, linear_layers, load_model, prune_model

Statistics = dict[str, dict[str, Tensor]]


@pytest.fixture(autouse=True)
def columns() -> Iterator[None]:
    with PATTERNS.including(COLUMNS):
        yield


@pytest.fixture(params=["tiny_model_dir", "tiny_gpt2_dir"])
def folder(request: pytest.FixtureRequest) -> str:
    path: Path = request.getfixturevalue(request.param)
    return str(path)


@pytest.fixture
def model(folder: str) -> nn.Module:
    return load_model(folder).model


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 2 * 32].view(2, 32)


@pytest.fixture
def statistics(model: nn.Module, sequences: Tensor) -> Statistics:
    return calibrate(model, sequences, ["X"])


@pytest.fixture
def judged(tiny_tokens: Tensor) -> Tensor:
    return windows(tiny_tokens, 2, 32)


def same_weights(ours: nn.Module, folder: str, recipe: Recipe, sequences: Tensor) -> None:
    """As the command prunes."""
    pruned = load_model(folder).model
    prune_model(pruned, recipe, sequences, order="dense")
    for name, layer in linear_layers(pruned).items():
        assert torch.equal(linear_layers(ours)[name].weight, layer.weight), name


def test_a_metric_is_judged_on_whole_columns(
    folder: str, model: nn.Module, statistics: Statistics, sequences: Tensor, judged: Tensor
) -> None:
    masking = MetricMasking(model, statistics, sparsity=0.5, pattern="columns")
    fitness = ModelFitness(masking, judged)
    # squares are in the order of magnitudes, and their sums over a column are not
    assert fitness.fingerprint(parse("sqr(W)")) is None
    fitness.prepare(published["wanda"])
    assert has_whole_columns(fitness.model)
    recipe = Recipe(metric="wanda", sparsity=0.5, pattern="columns")
    same_weights(fitness.model, folder, recipe, sequences)


def test_an_allocation_is_judged_on_whole_columns(
    folder: str, model: nn.Module, statistics: Statistics, sequences: Tensor, judged: Tensor
) -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5, pattern="columns", allocation="owl")
    allocation = recipe.allocator
    assert allocation is not None
    masking = AllocationMasking(
        model,
        statistics,
        metric=published["wanda"],
        sparsity=0.5,
        pattern="columns",
        unit=recipe.unit,
    )
    fitness = ModelFitness(masking, judged)
    fitness.prepare(allocation)(0, 1)
    assert has_whole_columns(fitness.model)
    same_weights(fitness.model, folder, recipe, sequences)


def test_a_pair_is_judged_on_whole_columns(
    folder: str, model: nn.Module, statistics: Statistics, sequences: Tensor, judged: Tensor
) -> None:
    text = "spread(depth, 0.2)"
    fitness = ModelFitness(JointMasking(model, statistics, sparsity=0.5, pattern="columns"), judged)
    both = parse(f"joint(mul(abs(W), X), {text})", JOINT)
    other = parse(f"joint(sqr(mul(abs(W), X)), {text})", JOINT)
    assert fitness.fingerprint(both) != fitness.fingerprint(other)
    fitness.prepare(both)
    assert has_whole_columns(fitness.model)
    recipe = Recipe(metric="wanda", sparsity=0.5, pattern="columns", allocation=text)
    same_weights(fitness.model, folder, recipe, sequences)
