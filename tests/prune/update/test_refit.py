"""The refit of the kept weights against the brute-force optimum."""

from __future__ import annotations

import pytest
import torch
from curved_layers import Layer, damped, dampings, layers, optimum
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.prune import Damping
from gpprune.prune.update.damping import scaled
from gpprune.prune.update.refit import least_squares, predicted_increase, refit, solve


def close(found: Tensor, wanted: Tensor, relative: float = 1e-8) -> None:
    assert found.dtype == wanted.dtype
    assert float((found - wanted).norm()) <= relative * float(wanted.norm()) + 1e-300


@given(layers(), dampings)
def test_enough_steps_reach_the_optimum(layer: Layer, damping: Damping) -> None:
    A, G = layer.damped(damping)
    found = solve(layer.weight, layer.mask, A, G, steps=400)
    assert not found[layer.mask].any()
    close(found, optimum(layer, A, G))


@given(layers(), dampings)
def test_without_gradients_every_row_is_a_least_squares_problem(
    layer: Layer, damping: Damping
) -> None:
    A = damped(layer.A, damping.inputs)
    wanted = torch.zeros_like(layer.weight)
    for row, mask, out in zip(layer.weight, layer.mask, wanted, strict=True):
        kept = ~mask
        out[kept] = torch.linalg.solve(A[kept][:, kept], (A @ row)[kept])
    close(solve(layer.weight, layer.mask, A, steps=400), wanted)


@given(layers(), dampings)
def test_the_updates_solve_the_damped_problem(layer: Layer, damping: Damping) -> None:
    if not layer.mask.numel() <= 12:  # as many unknowns as steps, at most
        layer.mask.flatten()[12:] = True
    A, G = layer.damped(damping)
    statistics = {"aaT": layer.A, "ggT": layer.G}
    before = [value.clone() for value in (layer.weight, layer.mask, layer.A, layer.G)]
    for update, outputs in ((refit, G), (least_squares, torch.eye(len(G), dtype=G.dtype))):
        found = update(layer.weight, layer.mask, statistics, damping)
        wanted = optimum(layer, A, outputs)
        costs = [cost(layer, new, A, outputs) for new in (found, wanted)]
        dense = cost(layer, torch.zeros_like(found), A, outputs)
        assert costs[0] <= costs[1] * (1 + 1e-3) + 1e-6 * dense
    now = (layer.weight, layer.mask, layer.A, layer.G)
    assert all(map(torch.equal, before, now))


def cost(layer: Layer, new: Tensor, A: Tensor, G: Tensor) -> float:
    return predicted_increase(layer.weight, new, A, G)


@given(layers(), dampings, st.integers(0, 8), st.booleans(), st.booleans())
def test_no_step_makes_it_worse(
    layer: Layer, damping: Damping, steps: int, given_start: bool, alone: bool
) -> None:
    A, G = layer.damped(damping)
    own = torch.randn_like(layer.weight) if given_start else None
    first = (layer.weight if own is None else own).masked_fill(layer.mask, 0)
    costs = [cost(layer, first, A, torch.eye(len(G), dtype=G.dtype) if alone else G)]
    for count in (steps, steps + 1):
        outputs = None if alone else G
        found = solve(layer.weight, layer.mask, A, outputs, steps=count, start=own)
        full = torch.eye(len(G), dtype=G.dtype) if alone else G
        costs.append(cost(layer, found, A, full))
    rounding = 1e-12 * cost(layer, torch.zeros_like(first), A, G if not alone else full) + 1e-30
    assert costs[1] <= costs[0] + rounding and costs[2] <= costs[1] + rounding


@given(layers(), dampings, st.integers(1, 4), st.integers(0, 4))
def test_first_steps_are_those_of_least_squares(
    layer: Layer, damping: Damping, first: int, steps: int
) -> None:
    A, G = layer.damped(damping)
    fitted = solve(layer.weight, layer.mask, A, steps=first)
    wanted = solve(layer.weight, layer.mask, A, G, steps=steps, start=fitted)
    found = solve(layer.weight, layer.mask, A, G, steps=steps, first_steps=first)
    rounding = 1e-9 * cost(layer, torch.zeros_like(found), A, G) + 1e-30
    assert cost(layer, found, A, G) == pytest.approx(cost(layer, wanted, A, G), abs=rounding)


def test_nothing_pruned_changes_nothing_and_all_pruned_leaves_zeros() -> None:
    weight, A = torch.randn(4, 5), torch.eye(5)
    none = torch.zeros(4, 5, dtype=torch.bool)
    assert torch.equal(solve(weight, none, A, torch.eye(4)), weight)
    assert not solve(weight, ~none, A, torch.eye(4)).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_weights_are_computed_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 40, generator=generator).to(dtype)
    mask = torch.rand(30, 40, generator=generator) < 0.5
    x, g = (torch.randn(200, n, generator=generator) for n in (40, 30))
    statistics = {"aaT": x.t() @ x, "ggT": g.t() @ g}
    found = refit(weight, mask, statistics, Damping())
    assert found.dtype == torch.float32
    wanted = refit(weight.double(), mask, statistics, Damping())
    assert torch.allclose(found.double(), wanted, atol=1e-4)


def test_a_tolerance_ends_it_early() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 30, generator=generator).double()
    mask = torch.rand(20, 30, generator=generator) < 0.5
    x, g = (torch.randn(50, n, generator=generator).double() for n in (30, 20))
    A, G = scaled(x.t() @ x, 0.01, torch.float64), scaled(g.t() @ g, 0.1, torch.float64)
    layer = Layer(weight, mask, A, G)
    best = cost(layer, optimum(layer, A, G), A, G)
    rough = solve(weight, mask, A, G, steps=1000, tolerance=0.1)
    fine = solve(weight, mask, A, G, steps=1000)
    assert cost(layer, rough, A, G) > best * (1 + 1e-6) > best
    assert cost(layer, fine, A, G) == pytest.approx(best, rel=1e-9)


def test_what_a_change_costs_is_the_mean_over_tokens_of_a_quadratic() -> None:
    """With independent factors of one token each it is 1/2 (g' D a)^2."""
    a, g = torch.randn(5).double(), torch.randn(3).double()
    weight, new = torch.randn(2, 3, 5).double()
    found = predicted_increase(weight, new, torch.outer(a, a), torch.outer(g, g))
    assert found == pytest.approx(0.5 * float(g @ (new - weight) @ a) ** 2)
