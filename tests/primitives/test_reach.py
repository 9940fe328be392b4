"""How large and small a primitive's results get: never past what its entry says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.compile import kernel
from gpprune.primitives import PRIMITIVES, Constant, parse
from gpprune.primitives.weights.reach import Reach, of_number

ARGUMENTS = ("W", "G")
ROUNDING = 1e-9


def measured(value: Tensor) -> Reach:
    sizes = value[value != 0].abs().log()
    return Reach(float(sizes.min()), float(sizes.max()), bool((value >= 0).all()))


def drawn(generator: torch.Generator, low: float, high: float, *, signed: bool) -> Tensor:
    """Values whose sizes are spread over powers of e; one is 0."""
    size = (low + (high - low) * torch.rand(6, 9, generator=generator, dtype=torch.float64)).exp()
    size[2, 3] = 0.0
    return size * torch.randn(6, 9, generator=generator).sign() if signed else size


@pytest.mark.parametrize("name", PRIMITIVES)
@example(1, [0.0, 66.0, 0.0, 0.0], False, -11.375)  # of a power under float64's normal range
@given(
    st.integers(0, 2**32),
    st.lists(st.floats(-80, 80), min_size=4, max_size=4),
    st.booleans(),
    st.floats(-12, 12).filter(lambda exponent: abs(exponent) > 1e-6),
)
def test_results_lie_within_the_reach(
    name: str, seed: int, ends: list[float], signed: bool, exponent: float
) -> None:
    entry = PRIMITIVES[name]
    generator = torch.Generator().manual_seed(seed)
    terminals = {
        "W": drawn(generator, *sorted(ends[:2]), signed=signed),
        "G": drawn(generator, *sorted(ends[2:]), signed=False),
    }
    texts = [
        f"{exponent:.12g}" if type_ is Constant else terminal
        for type_, terminal in zip(entry.arguments, ARGUMENTS, strict=False)
    ]
    below = [measured(terminals[t]) if t in terminals else of_number(float(t)) for t in texts]
    value = kernel(parse(f"{name}({', '.join(texts)})"), "reference")(**terminals)
    # subnormal numbers are rounded by far more than the bound is held to
    sizes = value[value.abs() >= torch.finfo(torch.float64).tiny].abs().log()
    bound = entry.reach(*below)
    assert all(math.isfinite(size) for size in sizes)
    assert bool((sizes <= bound.clamped.high + ROUNDING).all())
    assert bool((sizes >= min(bound.low, bound.clamped.high) - ROUNDING).all())
