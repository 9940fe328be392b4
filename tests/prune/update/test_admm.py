"""Mask and weights together, against the same iterations with dense systems; and drafts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from curved_layers import Layer, layer
from numpy.typing import NDArray

from gpprune.compile import kernel
from gpprune.primitives import parse
from gpprune.prune import UPDATES, Choice, Damping, parse_pattern, predicted_increase, prune_layer
from gpprune.prune.update.refit import solve

Array = NDArray[np.float64]
DAMPING = Damping()


def chosen_by(text: str, of: Layer, zeros: int) -> Choice:
    pattern = parse_pattern("layer")
    diagonals = {"A": of.A.diagonal().float(), "Gk": of.G.diagonal().float()}
    statistics = {**of.statistics, **diagonals}
    return Choice(kernel(parse(text)), statistics, pattern, zeros, local=True)


def unit(matrix: Array) -> tuple[Array, Array]:
    root = np.sqrt(np.diagonal(matrix))
    return matrix / np.outer(root, root) + 0.1 * np.eye(len(matrix)), root


def drawn_together(of: Layer, zeros: int, iterations: int, both: bool) -> tuple[Array, Array]:
    """What Boza's iterations come to, on the Kronecker product itself: weight and mask."""
    A, right = unit(of.A.numpy())
    G, left = unit(of.G.numpy()) if both else (np.eye(len(of.weight)), np.ones(len(of.weight)))
    root = np.outer(left, right)
    curvature = np.kron(G, A)
    dense = (of.weight.numpy() * root).ravel()
    fitted, apart, mask = dense.copy(), np.zeros_like(dense), np.zeros(dense.size, bool)
    zeroed = fitted
    choosing = iterations * 3 // 4
    for iteration in range(1, iterations + 1):
        if iteration <= choosing:
            count = int(zeros * (1 - (1 - iteration / choosing) ** 3))
            lowest = np.abs((fitted + apart) / root.ravel()).argsort(kind="stable")[:count]
            mask = np.zeros(dense.size, bool)
            mask[lowest] = True
        zeroed = np.where(mask, 0, fitted + apart)
        apart = apart + fitted - zeroed
        system = curvature + np.eye(dense.size)
        fitted = np.linalg.solve(system, curvature @ dense + zeroed - apart)
    return (zeroed / root.ravel()).reshape(root.shape), mask.reshape(root.shape)


@pytest.mark.parametrize(("name", "iterations", "steps"), [("admm", 20, 5), ("kron-admm", 10, 20)])
@pytest.mark.parametrize("seed", range(4))
def test_masks_are_those_of_the_iterations_on_the_whole_curvature(
    name: str, iterations: int, steps: int, seed: int
) -> None:
    of = layer(seed, rows=7, columns=9)
    both = name == "kron-admm"
    start, mask = drawn_together(of, 32, iterations, both)
    found = prune_layer(of.weight, chosen_by("abs(W)", of, 32), of.statistics, name)
    assert np.array_equal(found.numpy() == 0, mask)
    # what stays is then fitted from there
    A, G = (m / m.diagonal().mean() for m in (of.A, of.G))
    A.diagonal().add_(DAMPING.inputs)
    G.diagonal().add_(DAMPING.outputs)
    goes, first = torch.from_numpy(mask), torch.from_numpy(start)
    wanted = solve(of.weight, goes, A, G if both else None, start=first, steps=steps)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-8)


def test_the_mask_of_both_factors_costs_less_by_both() -> None:
    costs = {"refit": 0.0, "kron-admm": 0.0}
    for seed in range(20):
        of = layer(seed, rows=24, columns=30)
        A, G = of.damped(DAMPING)
        for name in costs:
            goes = chosen_by("mul(mul(sqr(W), Gk), A)", of, 400)
            new = prune_layer(of.weight, goes, of.statistics, name)
            costs[name] += predicted_increase(of.weight, new, A, G)
    assert costs["kron-admm"] < 0.9 * costs["refit"]


@pytest.mark.parametrize("name", [name for name, entry in UPDATES.items() if entry.draft])
def test_a_draft_reads_no_more_and_takes_given_masks(name: str) -> None:
    update = UPDATES[name]
    draft = update.draft
    assert draft is not None and draft.reads <= update.reads and draft.draft is None
    of = layer(3)
    eye = torch.eye(len(of.weight), dtype=torch.float64)
    A, _ = of.damped(DAMPING)
    rough, whole, zeroed = (
        predicted_increase(of.weight, prune_layer(of.weight, of.mask, of.statistics, how), A, eye)
        for how in (draft, "least-squares", "none")
    )
    assert whole <= rough < zeroed
