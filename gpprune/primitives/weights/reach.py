"""How large and how small a value can get: where a float's range ends, algebra ends too.

A primitive saturates at float32's largest, so `sqrt(sqr(exp(X)))` is not `exp(X)` where the square
does. The canonical form therefore asks of each primitive whether it may leave the range, on any
weights and statistics that a model could have, and if so leaves it as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gpprune.primitives.weights.lowering import LARGEST, TINY


class Reach(NamedTuple):
    """Natural logarithms of the smallest size that is not 0, and of the largest."""

    low: float
    high: float
    nonnegative: bool = True

    def to(self, exponent: float) -> Reach:
        """Of a power of the size."""
        low, high = self.low * exponent, self.high * exponent
        return Reach(low, high) if exponent >= 0 else Reach(high, low)

    def widened(self, other: Reach) -> Reach:
        """Of it, and of the product."""
        return Reach(self.low + min(0.0, other.low), self.high + max(0.0, other.high))

    @property
    def in_range(self) -> bool:
        """Whether it neither saturates nor, itself or squared, comes to nothing in float64."""
        # what is added to float32's largest without changing it is within range
        return self.low >= _LOWEST and self.high <= LOG_LARGEST + 1e-9

    @property
    def is_normal(self) -> bool:
        """Whether it does not come to nothing in float32 either."""
        return self.low >= LOG_TINY

    @property
    def clamped(self) -> Reach:
        """What is left after saturating."""
        low, high = (max(_LOWEST, min(LOG_LARGEST, size)) for size in (self.low, self.high))
        return Reach(low, high, self.nonnegative)


LOG_TINY, LOG_LARGEST = math.log(TINY), math.log(LARGEST)
_LOWEST = -354.0  # norms and deviations square, in float64
_TWO = math.log(2)
_ROUNDING = -53 * _TWO  # what is left of a sum that cancels, in float64
_COUNT = math.log(2**20)  # features or neurons of a layer


def total(parts: Sequence[Reach], *, nonnegative: bool) -> Reach:
    """Of a sum."""
    high = max(part.high for part in parts)
    high += math.log(sum(math.exp(max(-700.0, part.high - high)) for part in parts))
    low = min(part.low for part in parts)
    return Reach(low if nonnegative else _cancelled(low), high)


def _cancelled(low: float) -> float:
    """What a sum can leave of terms this small, which is never nothing by underflow."""
    return max(low + _ROUNDING, min(low, _LOWEST))


def of_number(value: float) -> Reach:
    """Of a number."""
    log = math.log(abs(value)) if value else 0.0
    return Reach(log, log, value >= 0)


def add(x: Reach, y: Reach) -> Reach:
    """Of x + y."""
    return total([x, y], nonnegative=x.nonnegative and y.nonnegative)


def sub(x: Reach, y: Reach) -> Reach:
    """Of x - y."""
    return total([x, y], nonnegative=False)


def mul(x: Reach, y: Reach) -> Reach:
    """Of x times y."""
    return Reach(x.low + y.low, x.high + y.high)


def div(x: Reach, y: Reach) -> Reach:
    """Of x / y."""
    return Reach(x.low - y.high, x.high - y.low)


def same(x: Reach) -> Reach:
    """Of -x and |x|."""
    return x


def sqr(x: Reach) -> Reach:
    """Of x squared."""
    return x.to(2.0)


def sqrt(x: Reach) -> Reach:
    """Of the root of |x|."""
    return x.to(0.5)


def power(x: Reach, exponent: Reach) -> Reach:
    """Of |x| to a constant power."""
    size = math.exp(exponent.low)  # of a number, so that its lowest is its highest
    return x.to(size if exponent.nonnegative else -size)


def exp(x: Reach) -> Reach:
    """Of e to the x."""
    top = math.exp(min(x.high, 20.0))  # far past any float, so that nothing overflows here
    return Reach(0.0 if x.nonnegative else -top, top)


def log(x: Reach) -> Reach:
    """Of the logarithm of |x|, at least of the smallest normal float32."""
    return Reach(_ROUNDING, math.log(max(abs(x.high), -LOG_TINY)))


def tanh(x: Reach) -> Reach:
    """Of the hyperbolic tangent, which is more than half of x up to 1."""
    return Reach(min(x.low, 0.0) - _TWO, 0.0)


def sigmoid(x: Reach) -> Reach:
    """Of 1 / (1 + e^-x), which is more than half of e^x below 0."""
    return Reach(exp(x).low - _TWO, 0.0)


def extremum(*parts: Reach) -> Reach:
    """Of the greater or the lesser."""
    return Reach(min(part.low for part in parts), max(part.high for part in parts))


def minmax(x: Reach) -> Reach:
    """Of x less its least, in terms of its range."""
    return Reach(x.low - x.high + _ROUNDING - _TWO, 0.0)


def zscore(x: Reach) -> Reach:
    """Of a z-score: none of n values is past the root of n."""
    return Reach(minmax(x).low - _COUNT, _COUNT)


def summed(x: Reach) -> Reach:
    """Of a sum over features or neurons."""
    return Reach(x.low if x.nonnegative else _cancelled(x.low), x.high + _COUNT)


def mean(x: Reach) -> Reach:
    """Of a mean over features or neurons."""
    return Reach(summed(x).low - _COUNT, x.high)


def norm(x: Reach) -> Reach:
    """Of a norm over features or neurons."""
    return Reach(x.low, x.high + _COUNT / 2)


def over_norm(x: Reach, y: Reach) -> Reach:
    """Of x over the norm of all y, which no y is past."""
    return Reach(x.low - y.high - _COUNT, x.high - y.low)


def half(x: Reach) -> Reach:
    """Of what is not 0 in float16."""
    return Reach(-24 * _TWO, math.log(65504))


UNKNOWN = Reach(_LOWEST, LOG_LARGEST, nonnegative=False)
"""Of a value of which nothing is known but that it is a float."""


def between(low: float, high: float) -> Reach:
    """Of values whose sizes lie between these, or are 0."""
    return Reach(math.log(low), math.log(high))


def unknown(*_: Reach) -> Reach:
    """Of a primitive of which nothing is known: it may saturate, so no algebra looks into it."""
    return Reach(-math.inf, math.inf, nonnegative=False)
