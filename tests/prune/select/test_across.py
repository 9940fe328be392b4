"""One threshold over all layers: exact numbers, bounds, ties, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import on_threads
from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    Recipe,
    calibrate,
    exact_mask,
    linear_layers,
    load_model,
    parse_pattern,
    prune_mask,
    prune_model,
    recipe_zeros,
    zeros_under,
)
from gpprune.prune.select.across import Bound, zeros_across

LEVELS = [-math.inf, -2.0, -0.0, 0.0, 1e-45, 1e-30, 1.0, 1.0000001, 3.5, math.inf]
MODEL = parse_pattern("model")


def by_sorting(layers: list[Tensor], zeros: int, most: list[int]) -> list[int]:
    """One score after another, the lowest first, and none of a layer that has given its most."""
    found = [0] * len(layers)
    places = torch.cat([torch.full((part.numel(),), at) for at, part in enumerate(layers)])
    scores = torch.cat([part.reshape(-1) for part in layers])
    for at in places[scores.sort(stable=True).indices].tolist():
        if sum(found) < zeros and found[at] < most[at]:
            found[at] += 1
    return found


@st.composite
def models(draw: st.DrawFn) -> list[Tensor]:
    """Layers of scores: ties within and between them, infinities, or all different scales."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=6))
    if draw(st.booleans()):
        scale = draw(st.sampled_from([0.0, 1e-3, 2.0]))
        return [
            torch.randn(size, generator=generator) * (1 + scale * at)
            for at, size in enumerate(sizes)
        ]
    levels = torch.tensor(draw(st.lists(st.sampled_from(LEVELS), min_size=1, max_size=5)))
    return [levels[torch.randint(len(levels), (size,), generator=generator)] for size in sizes]


@given(models(), st.floats(0, 1), st.data())
def test_the_lowest_of_all_layers_go_and_no_more_of_one_than_its_bound(
    layers: list[Tensor], share: float, data: st.DataObject
) -> None:
    most = [data.draw(st.integers(0, len(part))) for part in layers]
    zeros = round(share * sum(most))
    found = zeros_across(lambda: layers, zeros, [Bound(bound) for bound in most])
    assert found == by_sorting(layers, zeros, most)
    assert sum(found) == zeros


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=40), st.floats(0, 1))
def test_any_floats_are_told_apart(bits: list[int], share: float) -> None:
    scores = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    scores = torch.where(torch.isnan(scores), 0.0, scores)
    layers = [scores[::2], scores[1::2]]
    most = [len(part) for part in layers]
    zeros = round(share * len(bits))
    found = zeros_across(lambda: layers, zeros, [Bound(bound) for bound in most])
    assert found == by_sorting(layers, zeros, most)


@given(models(), st.floats(0, 1))
def test_scores_that_stand_for_several_weights_count_as_many(
    layers: list[Tensor], share: float
) -> None:
    bounds = [Bound(len(part) * (at + 1), at + 1) for at, part in enumerate(layers)]
    zeros = round(share * sum(bound.most for bound in bounds))
    found = zeros_across(lambda: layers, zeros, bounds)
    assert all(count % bound.member == 0 for count, bound in zip(found, bounds, strict=True))
    assert zeros - max(bound.member for bound in bounds) < sum(found) <= zeros
    # what goes is nowhere higher than what stays
    gone = [count // bound.member for count, bound in zip(found, bounds, strict=True)]
    ordered = [part.sort().values for part in layers]
    highest = max((p[n - 1] for p, n in zip(ordered, gone, strict=True) if n), default=-math.inf)
    lowest = min((p[n] for p, n in zip(ordered, gone, strict=True) if n < len(p)), default=math.inf)
    assert highest <= lowest


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    native.forget()
    yield
    native.forget()


def many() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(300, 500), (70, 900), (2, 3)]
    return [torch.randn(shape, generator=generator).round(decimals=2) for shape in shapes]


def check_many() -> None:
    layers = many()
    most = [part.numel() for part in layers]
    found = zeros_across(lambda: layers, 100_000, [Bound(bound) for bound in most])
    scores = torch.cat([part.reshape(-1) for part in layers])
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.sort(stable=True).indices[:100_000]] = True
    for part, count, wanted in zip(layers, found, mask.split(most), strict=True):
        assert torch.equal(exact_mask(part, count, MODEL).reshape(-1), wanted)


@pytest.mark.parametrize("threads", [1, 3])
def test_many_scores_are_as_by_a_stable_sort(threads: int) -> None:
    with on_threads(threads):
        check_many()


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_they_are_the_same() -> None:
    check_many()


def test_a_layer_alone_has_no_share() -> None:
    with pytest.raises(UsageError, match="'model' compares all layers of a model"):
        prune_mask(torch.rand(4, 4), 0.5, "model")


@pytest.mark.parametrize("allocation", ["owl", "besa", "spread(depth, 0.2)", "threshold(S)"])
def test_it_leaves_no_room_for_an_allocation(allocation: str) -> None:
    with pytest.raises(UsageError, match="'model' shares the sparsity out by itself"):
        Recipe(metric="wanda", sparsity=0.5, pattern="model", allocation=allocation)


# A model


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 2 * 32].view(2, 32)


@pytest.mark.parametrize("folder", ["tiny_model_dir", "tiny_gpt2_dir"])
@pytest.mark.parametrize("order", ["sequential", "dense"])
@pytest.mark.parametrize("allocation", ["uniform", "0.3"])
def test_a_model_loses_exactly_its_share(
    request: pytest.FixtureRequest, folder: str, order: str, allocation: str, sequences: Tensor
) -> None:
    path = str(request.getfixturevalue(folder))
    model, dense = (load_model(path).model for _ in range(2))
    recipe = Recipe(metric="wanda", sparsity=0.37, pattern="model", allocation=allocation)
    report = prune_model(model, recipe, sequences, order=order)
    layers = linear_layers(model)
    total = sum(layer.weight.numel() for layer in layers.values())
    assert sum(int((layer.weight == 0).sum()) for layer in layers.values()) == round(0.37 * total)
    assert len({layer.sparsity for layer in report.layers}) > 1
    # as many of each layer as the dense model says, whatever is measured anew
    statistics = calibrate(dense, sequences, ["X"])
    zeros = recipe_zeros(dense, recipe, sequences, statistics)
    assert {n: int((layer.weight == 0).sum()) for n, layer in layers.items()} == zeros
    if order == "dense":
        scores = {n: w.weight.abs() * statistics[n]["X"] for n, w in linear_layers(dense).items()}
        gone = torch.cat([scores[n][layer.weight == 0] for n, layer in layers.items()])
        below = {n: zeros[n] < 0.99 * layer.weight.numel() for n, layer in layers.items()}
        kept = [scores[n][layer.weight != 0] for n, layer in layers.items() if below[n]]
        assert gone.max() <= torch.cat(kept).min()


def test_no_layer_loses_everything(tiny_model_dir: Path) -> None:
    layers = list(linear_layers(load_model(str(tiny_model_dir)).model).values())
    sizes = [layer.weight.numel() for layer in layers]

    def scores(layer: object) -> Tensor:  # the first layers' are all lower than the others'
        at = next(at for at, other in enumerate(layers) if other is layer)
        generator = torch.Generator().manual_seed(at)
        return torch.rand(layers[at].weight.shape, generator=generator) + at

    zeros = zeros_under(layers, scores, 0.5, MODEL)
    assert sum(zeros) == round(0.5 * sum(sizes))
    assert zeros[0] == math.ceil(0.99 * sizes[0])
    assert max(zero / size for zero, size in zip(zeros, sizes, strict=True)) < 1
    near = zeros_under(layers, scores, 0.999, MODEL)
    assert sum(near) == round(0.999 * sum(sizes))


def test_nan_names_its_layer(tiny_model_dir: Path) -> None:
    layers = linear_layers(load_model(str(tiny_model_dir)).model)
    *_, last = layers.values()

    def scores(layer: object) -> Tensor:
        return last.weight * (math.nan if layer is last else 1)

    with pytest.raises(GppruneError, match=f"in '{last.name}': the scores hold NaN"):
        zeros_under(layers.values(), scores, 0.5, MODEL)


@settings(max_examples=10)
@given(st.floats(0.001, 0.995))
def test_shares_that_are_no_round_number_are_met(sparsity: float) -> None:
    layers = many()
    bounds = [Bound(math.ceil(max(0.99, sparsity) * part.numel())) for part in layers]
    zeros = round(sparsity * sum(part.numel() for part in layers))
    assert sum(zeros_across(lambda: layers, zeros, bounds)) == zeros
