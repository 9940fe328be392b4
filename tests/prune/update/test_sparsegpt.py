"""SparseGPT's sweep against optimal brain surgery of each row, column after column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curved_layers import Layer, gram, layer, layers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gpprune.compile import kernel
from gpprune.primitives import parse
from gpprune.prune import UPDATES, Choice, Damping, parse_pattern, prune_layer
from gpprune.prune.measure.hessians import inverse_diagonal
from gpprune.prune.update.choice import is_local, uniform_zeros
from gpprune.prune.update.sparsegpt import sparsegpt

Array = NDArray[np.float64]


def hessian_of(A: Tensor, damping: float) -> Array:
    found = A.numpy().copy()
    diagonal = found.diagonal().copy()
    dead = diagonal == 0
    diagonal[dead] = 1.0 if dead.all() else diagonal[~dead].mean()
    np.fill_diagonal(found, diagonal + damping * diagonal.mean())
    return found


def column(weight: Array, hessian: Array, at: int, goes: NDArray[np.bool_]) -> None:
    """Take the weights of a column that go out, and make up for it in the columns after it."""
    inverse = np.linalg.inv(hessian[at:, at:])  # the columns before it are settled
    for row in np.flatnonzero(goes):
        weight[row, at:] -= weight[row, at] / inverse[0, 0] * inverse[0]


@given(layers(), st.sampled_from([0.01, 0.1]))
def test_each_row_has_optimal_brain_surgery_in_the_order_of_columns(
    of: Layer, damping: float
) -> None:
    wanted, hessian = of.weight.numpy().copy(), hessian_of(of.A, damping)
    for at in range(wanted.shape[1]):
        column(wanted, hessian, at, of.mask[:, at].numpy())
    found = sparsegpt(of.weight, of.mask, of.statistics, Damping(inputs=damping))
    assert np.allclose(found.numpy(), np.where(of.mask, 0, wanted), rtol=1e-8, atol=1e-10)


def wide(seed: int = 0) -> Layer:
    """More columns than two blocks."""
    of = layer(seed, rows=6, columns=280)
    generator = torch.Generator().manual_seed(seed)
    return Layer(of.weight, of.mask, gram(700, 280, generator), of.G)


def test_blocks_of_columns_change_nothing() -> None:
    of = wide()
    wanted, hessian = of.weight.numpy().copy(), hessian_of(of.A, 0.01)
    for at in range(280):
        column(wanted, hessian, at, of.mask[:, at].numpy())
    found = sparsegpt(of.weight, of.mask, of.statistics, Damping())
    assert np.allclose(found.numpy(), np.where(of.mask, 0, wanted), rtol=1e-6, atol=1e-8)


def choice_of(of: Layer, pattern: str, sparsity: float | None, metric: str) -> Choice:
    formula, shape = parse(metric), parse_pattern(pattern)
    statistics = {
        "D": inverse_diagonal(of.A.clone(), "it"),
        "X": of.A.diagonal().sqrt().float(),
    }
    zeros = uniform_zeros(shape, shape.target(sparsity), of.weight.shape)
    return Choice(kernel(formula, "reference"), statistics, shape, zeros, is_local(formula))


@pytest.mark.parametrize(("pattern", "sparsity", "step"), [("layer", 0.5, 128), ("2:4", None, 4)])
def test_the_published_method_chooses_as_it_goes(
    pattern: str, sparsity: float | None, step: int
) -> None:
    of = wide(1)
    weight, hessian = of.weight.numpy().copy(), hessian_of(of.A, 0.01)
    root = np.linalg.cholesky(np.linalg.inv(hessian)[::-1, ::-1])[::-1, ::-1]
    assert np.allclose(np.tril(root, -1), 0)
    diagonal = np.linalg.cholesky(np.linalg.inv(hessian)).T.diagonal()
    goes = np.zeros(weight.shape, bool)
    for at in range(280):
        if at % step == 0:
            part = slice(at, min(at + step, 280))
            scores = weight[:, part] ** 2 / diagonal[part] ** 2
            if pattern == "2:4":
                np.put_along_axis(goes[:, part], scores.argsort(1)[:, :2], True, 1)
            else:
                lowest = scores.ravel().argsort()[: scores.size // 2]
                chosen = np.zeros(scores.size, bool)
                chosen[lowest] = True
                goes[:, part] = chosen.reshape(scores.shape)
        column(weight, hessian, at, goes[:, at])
    choice = choice_of(of, pattern, sparsity, "div(sqr(W), sqr(D))")
    found = prune_layer(of.weight, choice, of.statistics, "sparsegpt-blocks")
    assert np.array_equal(found.numpy() == 0, goes)
    assert np.allclose(found.numpy(), np.where(goes, 0, weight), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("metric", ["mul(abs(W), X)", "div(abs(W), rowsum(abs(W)))"])
@pytest.mark.parametrize("name", [name for name, u in UPDATES.items() if u.choose is not None])
@pytest.mark.parametrize(
    ("pattern", "sparsity"),
    [("row", 0.29), ("rows:3", 0.5), ("layer", 0.37), ("2:4", None), ("3:5", None), ("N:8", 0.5)],
)
def test_updates_that_choose_keep_the_budget_and_the_pattern(
    name: str, metric: str, pattern: str, sparsity: float | None
) -> None:
    of = layer(3, rows=9, columns=200)
    choice = choice_of(of, pattern, sparsity, metric)
    before = [value.clone() for value in (of.weight, of.A)]
    found = prune_layer(of.weight, choice, of.statistics, name)
    assert int((found == 0).sum()) == choice.zeros
    counts = choice.pattern.arrange((found == 0).double()).sum(1)
    assert float(counts.max() - counts.min()) == 0
    assert all(map(torch.equal, before, (of.weight, of.A)))
    # by any other update the mask is that of the dense weight
    plain = prune_layer(of.weight, choice, {}, "none")
    assert torch.equal(plain == 0, choice.mask(of.weight))
    assert not torch.equal(plain == 0, found == 0)


def test_an_odd_budget_is_kept() -> None:
    of = layer(4, rows=7, columns=150)
    choice = choice_of(of, "row", 0.5, "mul(abs(W), X)")
    odd = Choice(choice.score, choice.statistics, choice.pattern, 503, choice.local)
    for name in ("sparsegpt-blocks", "admm"):
        found = prune_layer(of.weight, odd, of.statistics, name)
        counts = (found == 0).sum(1)
        assert int(counts.sum()) == 503 and int(counts.max() - counts.min()) == 1


def test_an_update_that_chooses_takes_a_given_mask_too() -> None:
    of = layer(5)
    for name, other in (("sparsegpt-blocks", "sparsegpt"), ("admm", "least-squares")):
        found, wanted = (prune_layer(of.weight, of.mask, of.statistics, n) for n in (name, other))
        assert torch.equal(found, wanted)
