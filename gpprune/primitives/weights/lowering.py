"""What a primitive computes: torch functions of broadcastable tensors and their reductions.

Every function here is total on finite float32: a result past the largest float32 saturates at
it, so that neither an infinity nor a NaN can arise further up a tree. The same functions run in
float64 as the reference, with the same saturation point.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny  # the smallest normal float32; where `log` bottoms out


def saturate(value: Tensor) -> Tensor:
    """Clamp to the finite range of float32."""
    return value.clamp(-LARGEST, LARGEST)


@dataclass(frozen=True)
class Reduction:
    """A reduction of one argument of a primitive.

    `kind` is sum, mean, norm (L2), min, max, std (population) or std1 (unbiased); `axis` is "in"
    (over input features, one value an output neuron), "out" (over output neurons) or "all".
    An argument narrower than the matrix is reduced as if it had been broadcast: to the whole
    `[out, in]` matrix, or with `over="arguments"` only to the common shape of the arguments,
    which is what Pruner-Zero's operators do.
    """

    kind: str
    axis: str
    argument: int = 0
    over: str = "matrix"

    @property
    def axes(self) -> frozenset[str]:
        """The axes along which its result no longer varies."""
        return frozenset({"in", "out"} if self.axis == "all" else {self.axis})


@dataclass(frozen=True)
class Lowering:
    """How a primitive is computed of its arguments, then its reductions: `a`, `b`, `c`.

    `scalar` is an expression of C++ in those that it reads, as floats: there are `fabs`, `sqrt`,
    `min`, `max`, `expf`, `logf`, `tanhf`, `saturate`, `quotient` (0 where the divisor is 0),
    `power`, `half`, `LARGEST` and `TINY`. `apply` is the same function of tensors, of those alone;
    None where the single reduction is the result.
    """

    apply: Callable[..., Tensor] | None
    reductions: tuple[Reduction, ...] = ()
    scalar: str = ""

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """The places of what is read: `pz_div` takes part of its divisor as a norm alone."""
        names = sorted(set(re.findall(r"\b[abc]\b", self.scalar)))
        return tuple("abc".index(name) for name in names)


def add(x: Tensor, y: Tensor) -> Tensor:
    """X + y."""
    return saturate(x + y)


def sub(x: Tensor, y: Tensor) -> Tensor:
    """X - y."""
    return saturate(x - y)


def mul(x: Tensor, y: Tensor) -> Tensor:
    """X times y."""
    return saturate(x * y)


def div(x: Tensor, y: Tensor) -> Tensor:
    """X / y, and 0 where y is 0."""
    return saturate(torch.where(y == 0, 0.0, x / y))


def sqr(x: Tensor) -> Tensor:
    """X squared."""
    return saturate(x * x)


def sqrt(x: Tensor) -> Tensor:
    """The root of |x|."""
    return x.abs().sqrt()


def log(x: Tensor) -> Tensor:
    """The natural logarithm of |x|, at least of the smallest normal float32."""
    return x.abs().clamp(min=TINY).log()


def exp(x: Tensor) -> Tensor:
    """E to the x."""
    return saturate(x.exp())


def power(x: Tensor, exponent: Tensor) -> Tensor:
    """|x| to a power, and 0 where x is 0 and the power negative."""
    size = x.abs()
    return saturate(torch.where((size == 0) & (exponent < 0), 0.0, size.pow(exponent)))


def minmax(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """X shifted and scaled to [0, 1]."""
    return div(sub(x, low), sub(high, low))


def zscore(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """X less its mean, in standard deviations."""
    return div(sub(x, mean), std)


def pz_log(x: Tensor) -> Tensor:
    """log(|x| + 0.001)."""
    return (x.abs() + 0.001).log()


def pz_exp(x: Tensor) -> Tensor:
    """E to the min(x, 100)."""
    return saturate(x.clamp(max=100.0).exp())


def pz_half(x: Tensor) -> Tensor:
    """100 x rounded to float16."""
    # the published gradients are 100 times ours, stored in float16, whose largest value is 65504
    scaled = (x.float() * 100.0).clamp(-65504.0, 65504.0)
    # By arithmetic: torch.compile may leave out a cast to float16 and back. Beside a number 2^13
    # times its power of two, a float32 has float16's ten places; subnormals have one such power.
    power = (scaled.view(torch.int32) & 0x7F800000).view(torch.float32).clamp(min=2.0**-14)
    beside = power * (1.5 * 2**13)
    return ((scaled + beside) - beside).to(x.dtype)
