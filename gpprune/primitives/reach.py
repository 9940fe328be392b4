"""How large and how small a value can get: where a float's range ends, algebra ends too.

A primitive saturates at float32's largest, so `sqrt(sqr(exp(X)))` is not `exp(X)` where the square
does. The canonical form therefore asks of each primitive whether it may leave the range, on any
weights and statistics that a model could have, and if so leaves it as it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .lowering import LARGEST, TINY


class Reach(NamedTuple):
    """Natural logarithms of the smallest size that is not 0, and of the largest."""

    low: float
    high: float
    nonnegative: bool = True

    def times(self, other: Reach) -> Reach:
        """Of a product."""
        return Reach(self.low + other.low, self.high + other.high)

    def to(self, exponent: float) -> Reach:
        """Of a power of the size."""
        low, high = self.low * exponent, self.high * exponent
        return Reach(low, high) if exponent >= 0 else Reach(high, low)

    def widened(self, other: Reach) -> Reach:
        """Of it, and of the product."""
        return Reach(self.low + min(0.0, other.low), self.high + max(0.0, other.high))

    @property
    def in_range(self) -> bool:
        """Whether it neither saturates nor, in float64, comes to nothing."""
        # what is added to float32's largest without changing it is within range
        return self.low >= _LOWEST and self.high <= _HIGHEST + 1e-9

    @property
    def clamped(self) -> Reach:
        """What is left after saturating."""
        low, high = (max(_LOWEST, min(_HIGHEST, size)) for size in (self.low, self.high))
        return Reach(low, high, self.nonnegative)


_HIGHEST = math.log(LARGEST)
_LOWEST = -708.0  # of float64, in which tests and fingerprints compute
_ROUNDING = -53 * math.log(2)  # what is left of a sum that cancels, in float64
_COUNT = math.log(2**20)  # features or neurons of a layer


def total(parts: Sequence[Reach], *, nonnegative: bool) -> Reach:
    """Of a sum."""
    high = max(part.high for part in parts)
    high += math.log(sum(math.exp(max(-700.0, part.high - high)) for part in parts))
    low = min(part.low for part in parts)
    return Reach(low if nonnegative else low + _ROUNDING, high)


def of_number(value: float) -> Reach:
    """Of a number."""
    log = math.log(abs(value)) if value else 0.0
    return Reach(log, log, value >= 0)


def reach(name: str, below: Sequence[Reach]) -> Reach:
    """Of a primitive on arguments of these, before it saturates."""
    return _OF[name](*below)


def _sum(*parts: Reach) -> Reach:
    return total(parts, nonnegative=all(part.nonnegative for part in parts))


def _difference(x: Reach, y: Reach) -> Reach:
    return total([x, y], nonnegative=False)


def _exp(x: Reach) -> Reach:
    # far past any float, so that nothing overflows here
    top = math.exp(min(x.high, 20.0))
    return Reach(0.0 if x.nonnegative else -top, top)


def _log(x: Reach) -> Reach:
    return Reach(_ROUNDING, math.log(max(abs(x.high), -math.log(TINY))))


def _extremum(*parts: Reach) -> Reach:
    return Reach(min(part.low for part in parts), max(part.high for part in parts))


def _power(x: Reach, exponent: Reach) -> Reach:
    size = math.exp(exponent.low)  # of a number, so that its lowest is its highest
    return x.to(size if exponent.nonnegative else -size)


def _normalised(x: Reach) -> Reach:
    """Of a z-score: none of n values is past the root of n."""
    return Reach(_shifted(x).low - _COUNT, _COUNT)


def _shifted(x: Reach) -> Reach:
    """Of x less one of its values, in terms of its range."""
    return Reach(x.low - x.high + _ROUNDING, 0.0)


def _summed(x: Reach) -> Reach:
    return Reach(x.low if x.nonnegative else x.low + _ROUNDING, x.high + _COUNT)


def _mean(x: Reach) -> Reach:
    return Reach(_summed(x).low - _COUNT, x.high)


def _norm(x: Reach) -> Reach:
    return Reach(x.low, x.high + _COUNT / 2)


def _pz_half(x: Reach) -> Reach:
    return Reach(-24 * math.log(2), math.log(65504))


_OF: dict[str, Callable[..., Reach]] = {
    "add": _sum,
    "sub": _difference,
    "mul": Reach.times,
    "div": lambda x, y: x.times(y.to(-1.0)),
    "neg": lambda x: x,
    "abs": lambda x: x,
    "sqr": lambda x: x.to(2.0),
    "sqrt": lambda x: x.to(0.5),
    "pow": _power,
    "exp": _exp,
    "log": _log,
    "tanh": lambda x: Reach(min(x.low, 0.0), 0.0),
    "sigmoid": lambda x: Reach(-_exp(x).high if not x.nonnegative else -math.log(2), 0.0),
    "max": _extremum,
    "min": _extremum,
    "minmax": _shifted,
    "zscore": _normalised,
    "rowsum": _summed,
    "colsum": _summed,
    "rowmean": _mean,
    "colmean": _mean,
    "rownorm": _norm,
    "colnorm": _norm,
    "pz_div": lambda x, y: Reach(x.low - y.high - _COUNT, x.high - y.low),
    "pz_log": _log,
    "pz_exp": _exp,
    "pz_zsn": _normalised,
    "pz_half": _pz_half,
}

# Wider than any model that can be used has them; of S, which any metric may give, most are within.
TERMINALS: dict[str, Reach] = {
    name: Reach(math.log(low), math.log(high))
    for name, (low, high) in {
        "W": (1e-12, 64),
        "X": (1e-6, 1e5),
        "Y": (1e-6, 1e6),
        "G": (1e-15, 64),
        "D": (1e-6, 1e4),
        "S": (1e-30, 1e30),
    }.items()
}
