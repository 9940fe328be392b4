"""Terminals: what a formula reads without calibration, and what is known of each.

The parser, DEAP's set, the canonical form and sympy's symbols are derived from the entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from gpprune.errors import UsageError
from gpprune.primitives.types import Elements, Sign, ValueType
from gpprune.primitives.vocabulary import Vocabulary
from gpprune.primitives.weights.reach import UNKNOWN, Reach, between


@dataclass(frozen=True)
class Terminal:
    """A name that stands for given values.

    Attributes:
        name: its word in formula text.
        type: the shape of its values, such as `Elements`.
        about: what it is, for `gpprune primitives`.
        sign: what is known of the sign of every value.
        reach: how large and small its values get on any model that can be used.
        searched: whether a search draws it; formula text may use every one.
    """

    name: str
    type: ValueType
    about: str
    sign: Sign = Sign.ANY
    reach: Reach = UNKNOWN
    searched: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.type, ValueType):
            raise UsageError(f"the terminal {self.name!r} needs a value type, not {self.type!r}")

    @property
    def symbol(self) -> sympy.Symbol:
        """What sympy calls it."""
        return symbol(self.name, self.sign)


def symbol(name: str, sign: Sign) -> sympy.Symbol:
    """A real symbol of a sign."""
    known = {
        Sign.ANY: {"real": True},
        Sign.NONNEGATIVE: {"nonnegative": True},
        Sign.POSITIVE: {"positive": True},
    }
    return sympy.Symbol(name, **known[sign])


TERMINALS: Vocabulary[Terminal] = Vocabulary(
    "terminal",
    Terminal(
        "W",
        Elements,
        "the weights, signed, [out_features, in_features]",
        # Wider than any model that can be used has them.
        reach=between(1e-12, 64),
    ),
)
