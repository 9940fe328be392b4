"""What is declared of a primitive of allocations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy

from gpprune.errors import UsageError
from gpprune.primitives.types import Constant, Sign, ValueType
from gpprune.primitives.units.functions import OnFlat, OnMatrix, OnModel, OnUnits, OnValues

UnitLowering = OnUnits | OnValues | OnMatrix | OnModel | OnFlat | None


@dataclass(frozen=True)
class UnitPrimitive:
    """An operator of allocations.

    Attributes:
        name: its word in formula text, behind a prefix where metrics have the same word.
        about: what it computes, for `gpprune primitives`.
        arguments: the types that it takes.
        result: the type that it gives; never `Constant`, which stands for a written number.
        symbolic: the same function of sympy expressions.
        lowering: how it is computed, and of what.
        searched: whether a search draws it; formula text may use every one.
        nonnegative: no result is below 0.
        positive: every result is above 0.
        scale_free: f(a x + b) = f(x) for a > 0.
        factor_free: f(a x) = f(x) for a > 0.
        scaled: f(x, a) = a f(x, 1), of x in shares of its own range.
        uneven: it tells units apart that its arguments do not.
        like: the primitive of metrics that does to values of weights what this does to units.
    """

    name: str
    about: str
    arguments: tuple[ValueType, ...]
    result: ValueType
    symbolic: Callable[..., sympy.Expr]
    lowering: UnitLowering
    searched: bool = True
    nonnegative: bool = False
    positive: bool = False
    scale_free: bool = False
    factor_free: bool = False
    scaled: bool = False
    uneven: bool = False
    like: str = ""

    def __post_init__(self) -> None:
        if not self.arguments or self.result is Constant:
            raise UsageError(
                f"the primitive {self.name!r} takes {self.arguments} and gives "
                f"{self.result.__name__}: give it an argument at least, and no Constant to give"
            )

    @property
    def sign(self) -> Sign:
        """What its facts tell of the sign of every result."""
        if self.positive:
            return Sign.POSITIVE
        return Sign.NONNEGATIVE if self.nonnegative else Sign.ANY

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return len(self.arguments)
