"""What is cheaper to compute and the same: constants folded, powers as roots and products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpprune.primitives import Primitive

# x to a constant power, by the power, as a formula of x. None may lose what the power would have
# kept: x to -2 is not 1 over x squared, which is 0 for an x of 1e-30.
POWERS: dict[float, tuple[object, ...]] = {
    -1.0: ("div", 1.0, ("abs", "x")),
    -0.5: ("div", 1.0, ("sqrt", "x")),
    0.25: ("sqrt", ("sqrt", "x")),
    0.5: ("sqrt", "x"),
    1.0: ("abs", "x"),
    1.5: ("mul", ("abs", "x"), ("sqrt", "x")),
    2.0: ("sqr", "x"),
    3.0: ("mul", ("sqr", "x"), ("abs", "x")),
    4.0: ("sqr", ("sqr", "x")),
}


def folded(entry: Primitive, numbers: Sequence[float]) -> float | None:
    """An elementwise primitive of constants as a constant; None where there is a reduction."""
    if entry.lowering.reductions or entry.lowering.apply is None:
        return None
    given = [torch.tensor(numbers[at], dtype=torch.float64) for at in entry.lowering.reads]
    return float(entry.lowering.apply(*given))
