"""Masks that are chosen column by column have exactly the zeros of the layer's mask."""

from __future__ import annotations

import pytest
import torch
from columns_pattern import arrange, restore
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.compile import kernel
from gpprune.errors import GppruneError
from gpprune.primitives import parse
from gpprune.prune import Choice, Pattern, exact_mask, parse_pattern
from gpprune.prune.update.choice import is_local, uniform_zeros

COLUMNS = Pattern("columns", None, arrange, restore)
PATTERNS = ["row", "layer", "rows:4", "2:4", "3:4", "N:8", "N:2", "1:16"]
METRICS = ["mul(abs(W), X)", "div(sqr(W), sqr(D))", "div(abs(W), rowsum(abs(W)))", "mul(W, Y)"]


def choice_of(pattern: Pattern, metric: str, zeros: int, statistics: dict[str, Tensor]) -> Choice:
    formula = parse(metric)
    score = kernel(formula, "reference")
    return Choice(score, statistics, pattern, zeros, is_local(formula))


@given(
    st.integers(0, 1000),
    st.sampled_from([*PATTERNS, "columns"]),
    st.sampled_from(METRICS),
    st.floats(0, 0.99),
    st.sampled_from([1, 4, 12, 16, 128]),
)
def test_columns_have_their_share_of_every_group(
    seed: int, text: str, metric: str, share: float, wanted: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(8, 48, generator=generator)
    statistics = {name: torch.rand(48, generator=generator) + 0.1 for name in "XD"}
    statistics["Y"] = torch.rand(8, generator=generator)
    pattern = COLUMNS if text == "columns" else parse_pattern(text)
    grain = pattern.grain(weight.shape)
    zeros = int(share * weight.numel()) // grain * grain
    choice = choice_of(pattern, metric, zeros, statistics)
    step = choice.step(weight.shape, wanted)
    before = weight.clone()
    parts = [choice.columns(weight, at, min(at + step, 48)) for at in range(0, 48, step)]
    whole, mask = torch.cat(parts, 1), choice.mask(weight)
    assert int(whole.sum()) == int(mask.sum()) == zeros
    assert torch.equal(weight, before)
    scores = choice.score(W=weight, **statistics)
    assert torch.equal(mask, exact_mask(scores, zeros, pattern))
    groups = [pattern.arrange(found.double()).sum(1) for found in (whole, mask)]
    assert torch.equal(*groups)
    if pattern.even:  # groups of columns are chosen alike, wherever they are cut
        assert torch.equal(whole, mask)


@given(
    st.sampled_from(["row", "layer", "rows:4"]),
    st.sampled_from([128, 130, 192, 256, 300, 384, 644]),
    st.integers(0, 8 * 644),
    st.integers(0, 300),
)
def test_blocks_of_columns_have_their_share_and_no_fewer_of_more_zeros(
    text: str, inputs: int, zeros: int, more: int
) -> None:
    pattern = parse_pattern(text)
    weight = torch.randn(8, inputs)
    groups = pattern.groups(weight.shape)
    zeros = min(zeros, weight.numel())
    before = None
    for count in (zeros, min(zeros + more, weight.numel())):
        choice = choice_of(pattern, "abs(W)", count, {})
        starts = range(0, inputs, choice.step(weight.shape, 128))
        masks = [choice.columns(weight, at, min(at + 128, inputs)) for at in starts]
        own = torch.tensor([int(mask.sum()) for mask in masks])
        sizes = torch.tensor([mask.shape[1] for mask in masks])
        assert int(own.sum()) == count
        assert bool(((own - count * sizes / inputs).abs() < groups + 1e-6).all())
        each = torch.stack([pattern.arrange(mask).sum(1) for mask in masks])
        assert before is None or bool((each >= before).all())
        before = each


@pytest.mark.parametrize(("together", "step"), [(1, 128), (5, 125), (96, 96), (130, 260)])
def test_columns_that_belong_together_are_not_parted(together: int, step: int) -> None:
    choice = Choice(kernel(parse("abs(W)")), {}, parse_pattern("layer"), 100, together=together)
    assert choice.step(torch.Size([4, 260]), 128) == step


@pytest.mark.parametrize("text", PATTERNS)
def test_a_uniform_layer_has_the_zeros_of_its_mask(text: str) -> None:
    pattern = parse_pattern(text)
    sparsity = pattern.target(None if pattern.sparsity is not None else 0.29)
    weight = torch.randn(12, 16)
    zeros = uniform_zeros(pattern, sparsity, weight.shape)
    choice = choice_of(pattern, "abs(W)", zeros, {})
    for share in (0.0, 0.3, 1.0):
        found = int(choice.mask(weight, share).sum())
        assert zeros * share - pattern.grain(weight.shape) < found <= zeros * share


def test_scores_without_an_order_are_refused() -> None:
    weight = torch.full((2, 4), torch.nan)
    with pytest.raises(GppruneError, match="NaN"):
        choice_of(parse_pattern("row"), "abs(W)", 4, {}).columns(weight, 0, 2)
