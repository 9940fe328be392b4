"""Whole rows and columns: the closed form against the optimum by brute force, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune import Damping, prune_layer
from gpprune.prune.update.joint import rows_and_columns

Array = NDArray[np.float64]


def drawn(seed: int, out: int, inputs: int) -> tuple[Array, dict[str, Tensor]]:
    """A weight, and correlated curvature of its inputs and outputs."""
    generator = np.random.default_rng(seed)
    factors = [
        generator.normal(size=(size, size + 2)) @ np.diag(generator.lognormal(size=size + 2))
        for size in (inputs, out)
    ]
    grams = [torch.from_numpy(factor @ factor.T) for factor in factors]
    return generator.normal(size=(out, inputs)), dict(zip(("aaT", "ggT"), grams, strict=True))


def damped(matrix: Tensor, share: float) -> Array:
    found: Array = matrix.numpy() + share * matrix.diagonal().mean().item() * np.eye(len(matrix))
    return found


def brute(weight: Array, mask: Array, A: Array, G: Array) -> Array:
    """The kept entries that solve the whole system ``(G (x) A)_KK d_K = -(G (x) A)_KQ d_Q``."""
    whole = np.kron(G, A)
    gone = mask.astype(bool).ravel()
    change = np.where(gone, -weight.ravel(), 0.0)
    kept = ~gone
    if kept.any():
        right = -whole[np.ix_(kept, gone)] @ change[gone]
        change[kept] = np.linalg.solve(whole[np.ix_(kept, kept)], right)
    return weight + change.reshape(weight.shape)


masks = st.tuples(
    st.integers(0, 99),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 5)),
)


@given(masks, st.sampled_from([0.01, 0.3]))
def test_the_fit_is_the_joint_optimum(
    of: tuple[int, int, int, set[int], set[int]], share: float
) -> None:
    seed, out, inputs, rows, columns = of
    weight, statistics = drawn(seed, out, inputs)
    mask = np.zeros((out, inputs))
    mask[[row for row in rows if row < out]] = 1
    mask[:, [column for column in columns if column < inputs]] = 1
    gone, dense = torch.from_numpy(mask.astype(bool)), torch.from_numpy(weight)
    damping = Damping(share, 2 * share)
    A, G = damped(statistics["aaT"], share), damped(statistics["ggT"], 2 * share)
    for update, outputs in (("refit", G), ("least-squares", np.eye(out))):
        found = prune_layer(dense, gone, statistics, update, damping=damping).numpy()
        wanted = brute(weight, mask, A, outputs)
        wanted[mask == 1] = 0
        assert np.abs(found - wanted).max() <= 1e-8 * max(1, np.abs(wanted).max())


def cost(change: Array, A: Array, G: Array) -> float:
    return float((change * (G @ change @ A)).sum())


def test_it_costs_less_than_the_published_sum() -> None:
    """LLM Surgeon's, ``D_rows + D_cols``, by its own formula with inverses."""
    for seed in range(5):
        weight, statistics = drawn(seed, 6, 8)
        mask = torch.zeros(6, 8, dtype=torch.bool)
        rows, columns = [1, 4], [0, 2, 7]
        mask[rows], mask[:, columns] = True, True
        A, G = damped(statistics["aaT"], 0.01), damped(statistics["ggT"], 0.1)
        Ai, Gi = np.linalg.inv(A), np.linalg.inv(G)
        of_rows = -Gi[:, rows] @ np.linalg.inv(Gi[np.ix_(rows, rows)]) @ weight[rows]
        of_columns = -weight[:, columns] @ np.linalg.inv(Ai[np.ix_(columns, columns)]) @ Ai[columns]
        published = weight + of_rows + of_columns
        published[mask.numpy()] = 0
        dense = torch.from_numpy(weight)
        found = prune_layer(dense, mask, statistics, "surgeon").numpy()
        assert np.allclose(found, published, rtol=1e-8, atol=1e-10)
        fitted = prune_layer(dense, mask, statistics, "refit").numpy()
        costs = [cost(new - weight, A, G) for new in (fitted, published)]
        assert costs[0] < costs[1]


@pytest.mark.parametrize("rows", [[], [0, 3]])
@pytest.mark.parametrize("columns", [[], [1]])
def test_masks_of_rows_and_columns_are_told_from_others(
    rows: list[int], columns: list[int]
) -> None:
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[rows], mask[:, columns] = True, True
    found = rows_and_columns(mask)
    assert found is not None
    assert [side.tolist() for side in found] == [rows, columns]
    mask[1, 0] = True
    assert rows_and_columns(mask) is None
