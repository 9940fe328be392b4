"""Orders of channels by which N:M keeps more of their scores."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune.select import channels
from gpprune.prune.select.channels import channel_order, kept_score


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, columns, generator=generator) ** 3


def kept(scores: Tensor, count: int, size: int, order: Tensor | None = None) -> float:
    """What stays, sorted group by group in float64."""
    values: NDArray[np.float64] = scores.double().numpy()
    if order is not None:
        values = values[:, order.numpy()]
    groups = np.sort(values.reshape(len(values), -1, size), axis=2)
    return float(groups[:, :, size - count :].sum())


@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (4, 4)]),
    st.integers(0, 99),
    st.integers(1, 3),
)
def test_an_order_has_each_channel_once_and_keeps_no_less(
    rows: int, groups: int, pattern: tuple[int, int], seed: int, matrices: int
) -> None:
    count, size = pattern
    many = [drawn(rows, groups * size, seed + at) for at in range(matrices)]
    order = channel_order(lambda: many, count, size)
    assert sorted(order.tolist()) == list(range(groups * size))
    reached = kept_score(lambda: many, count, size, order)
    own = torch.cat(many)
    assert reached == pytest.approx(kept(own, count, size, order), rel=1e-5)
    assert reached >= kept(own, count, size) * (1 - 1e-5)


def best_split(scores: Tensor) -> float:
    """The most that 2:4 can keep of eight channels: their 35 splits, tried one by one."""
    found = 0.0
    for rest in combinations(range(1, 8), 3):
        first = [0, *rest]
        order = torch.tensor([*first, *(at for at in range(8) if at not in first)])
        found = max(found, kept(scores, 2, 4, order))
    return found


def test_orders_come_near_the_best_split() -> None:
    gains, bests = 0.0, 0.0
    for seed in range(40):
        scores = drawn(6, 8, seed)
        own, best = kept(scores, 2, 4), best_split(scores)
        reached = kept(scores, 2, 4, channel_order(lambda scores=scores: [scores], 2, 4))  # type: ignore[misc]
        assert reached <= best + 1e-6
        gains, bests = gains + reached - own, bests + best - own
    assert gains > 0.85 * bests


def test_channels_that_fit_together_find_one_another() -> None:
    """Each row has two scores in every group of four that was then torn apart."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.zeros(32, 64)
    for row in range(32):
        for group in range(16):
            pair = torch.randperm(4, generator=generator)[:2]
            scores[row, 4 * group + pair] = 0.5 + torch.rand(2, generator=generator)
    torn = scores[:, torch.randperm(64, generator=generator)]
    order = channel_order(lambda: [torn], 2, 4)
    whole = float(scores.sum())
    assert kept(torn, 2, 4) < 0.89 * whole
    assert kept(torn, 2, 4, order) > 0.95 * whole


def test_wide_axes_are_exchanged_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = drawn(16, 96, 5)
    whole = kept(scores, 2, 4, channel_order(lambda: [scores], 2, 4))
    monkeypatch.setattr(channels, "_TOGETHER", 7)
    blocks = kept(scores, 2, 4, channel_order(lambda: [scores], 2, 4))
    own = kept(scores, 2, 4)
    assert blocks - own > 0.7 * (whole - own) > 0


def test_the_same_scores_give_the_same_order() -> None:
    scores = drawn(12, 48, 3)
    first, again = (channel_order(lambda: [scores.clone()], 2, 4) for _ in range(2))
    assert torch.equal(first, again)
