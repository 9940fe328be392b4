"""Patterns by what they say of themselves: arranged and restored, grains, checks, new entries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from columns_pattern import COLUMNS, has_whole_columns
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    LEARNED,
    PATTERNS,
    Learned,
    Recipe,
    exact_mask,
    linear_layers,
    load_model,
    parse_pattern,
    prune_mask,
    prune_model,
    rank_scores,
)

TEXTS = ["row", "rows:2", "cols:4", "layer", "model", "2:4", "1:8", "N:8"]


@pytest.fixture
def columns() -> Iterator[None]:
    with PATTERNS.including(COLUMNS):
        yield


@given(st.sampled_from(TEXTS), st.integers(1, 4), st.integers(1, 5))
def test_what_is_arranged_is_restored(text: str, rows: int, columns: int) -> None:
    shape = (2 * rows, 8 * columns)
    scores = torch.arange(shape[0] * shape[1]).view(shape)
    pattern = parse_pattern(text)
    groups = pattern.arrange(scores)
    assert groups.shape[0] == pattern.groups(shape)
    assert torch.equal(pattern.restore(groups, shape), scores)


@pytest.mark.parametrize(
    ("text", "groups", "grain"),
    [
        ("row", 6, 1),
        ("rows:3", 2, 1),
        ("cols:2", 4, 1),
        ("layer", 1, 1),
        ("model", 1, 1),
        ("2:4", 12, 12),
        ("N:8", 6, 6),
    ],
)
def test_groups_and_grains_are_counted(text: str, groups: int, grain: int) -> None:
    pattern = parse_pattern(text)
    assert (pattern.groups((6, 8)), pattern.grain((6, 8))) == (groups, grain)
    assert pattern.member((6, 8)) == 1


@pytest.mark.parametrize("kept", range(1, 50))
def test_an_implied_sparsity_keeps_as_many_as_are_written(kept: int) -> None:
    """1 - 3/7 is less than 4/7 in binary, and four of seven go all the same."""
    mask = prune_mask(torch.rand(2, 98), None, f"{kept}:49")
    assert mask.view(-1, 49).sum(1).eq(49 - kept).all()


@pytest.mark.parametrize("text", ["2:4", "N:4"])
def test_zeros_that_groups_cannot_share_evenly_are_refused(text: str) -> None:
    pattern = parse_pattern(text)
    for make in (lambda: exact_mask(torch.rand(2, 8), 6, pattern), lambda: ranked(6, pattern)):
        with pytest.raises(UsageError, match="6 zeros: they come in multiples of 4"):
            make()


def ranked(zeros: int, pattern: object) -> Tensor:
    return rank_scores(torch.rand(2, 8), pattern).mask(zeros)  # type: ignore[arg-type]


def test_scores_that_are_no_matrix_are_refused() -> None:
    for make in (prune_mask, exact_mask):
        with pytest.raises(UsageError, match=r"\[8\]"):
            make(torch.rand(8), 0, parse_pattern("row"))


# A pattern of one's own


def test_a_pattern_is_there_while_its_entry_is() -> None:
    with pytest.raises(UsageError, match="'columns'"):
        parse_pattern("columns")
    with PATTERNS.including(COLUMNS):
        assert parse_pattern("columns").text == "columns"
        with pytest.raises(UsageError, match=r"or mlp,heads, free, experts, columns"):
            parse_pattern("columnar")
    with pytest.raises(UsageError, match="'columns'"):
        parse_pattern("columns")


@pytest.mark.usefixtures("columns")
def test_masks_are_of_whole_columns() -> None:
    scores = torch.rand(5, 12, generator=torch.Generator().manual_seed(0))
    lowest = torch.zeros(12, dtype=torch.bool)
    lowest[scores.sum(0).sort().indices[:4]] = True
    pattern = parse_pattern("columns")
    assert pattern.grain(scores.shape) == pattern.member(scores.shape) == 5
    ranks = rank_scores(scores, pattern)
    for mask in (
        prune_mask(scores, 0.34, "columns"),
        exact_mask(scores, 20, pattern),
        ranks.mask(20),
    ):
        assert torch.equal(mask, lowest.expand(5, 12))
        mask[0, 0] = True  # each weight has a place of its own
        assert int(mask.sum()) in (20, 21)
    with pytest.raises(UsageError, match="21 zeros: they come in multiples of 5"):
        ranks.mask(21)


@pytest.mark.usefixtures("columns")
def test_scores_without_a_sum_are_refused() -> None:
    scores = torch.ones(3, 4)
    scores[0, 1], scores[1, 1] = float("inf"), float("-inf")
    with pytest.raises(GppruneError, match="NaN"):
        prune_mask(scores, 0.5, "columns")


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("folder", ["tiny_model_dir", "tiny_gpt2_dir"])
@pytest.mark.parametrize("allocation", ["uniform", "owl", "besa"])
@pytest.mark.parametrize("order", ["sequential", "dense"])
def test_a_model_loses_whole_columns_under_any_allocation(
    request: pytest.FixtureRequest, folder: str, tiny_tokens: Tensor, allocation: str, order: str
) -> None:
    path: Path = request.getfixturevalue(folder)
    model = load_model(str(path)).model
    recipe = Recipe(metric="wanda", sparsity=0.5, pattern="columns", allocation=allocation)
    report = prune_model(model, recipe, tiny_tokens[: 2 * 32].view(2, 32), order=order)
    assert has_whole_columns(model)
    assert report.sparsity == pytest.approx(0.5, abs=0.02)


@pytest.mark.usefixtures("columns")
def test_scores_are_summed_as_they_are_and_not_in_a_form_of_the_same_order(
    tiny_model_dir: Path, tiny_tokens: Tensor
) -> None:
    """Squares are in the order of magnitudes, and their sums are not."""
    model, dense = (load_model(str(tiny_model_dir)).model for _ in range(2))
    recipe = Recipe(metric="sqr(sqr(W))", sparsity=0.5, pattern="columns")
    prune_model(model, recipe, tiny_tokens[:32].view(1, 32))
    for name, layer in linear_layers(dense).items():
        least = (layer.weight**4).sum(0).sort().indices[: layer.in_features // 2]
        gone = (linear_layers(model)[name].weight == 0).all(0).nonzero()[:, 0]
        assert set(gone.tolist()) == set(least.tolist())


def test_a_learned_allocation_of_ones_own(tiny_model_dir: Path, tiny_tokens: Tensor) -> None:
    def learn(model, metric, tokens, statistics, target, progress):  # type: ignore[no-untyped-def]
        return {name: 0.8 if ".0." in name else 0.2 for name in linear_layers(model)}

    model = load_model(str(tiny_model_dir)).model
    with LEARNED.including(Learned("first", "the first block most", learn)):
        recipe = Recipe(metric="magnitude", sparsity=0.5, allocation="first")
        assert recipe.allocator is None and recipe.reads == frozenset()
        report = prune_model(model, recipe, tiny_tokens[:32].view(1, 32))
    assert report.sparsity == 0.5
    assert {round(layer.sparsity, 2) for layer in report.layers} == {0.8, 0.2}
    with pytest.raises(UsageError, match="'first'"):
        Recipe(metric="magnitude", sparsity=0.5, allocation="first")
