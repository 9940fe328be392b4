"""The value types of the formula language, as DEAP sees them.

DEAP admits a node wherever its return type is a subclass of the argument type asked for, so the
broadcasting rules of a linear layer's weight matrix `[out_features, in_features]` are written
down once, as inheritance: whatever is narrower *is* the wider thing.
"""

from __future__ import annotations

import zlib
from enum import IntEnum


class ValueType(type):
    """Metaclass that gives a value type the same hash in every process.

    DEAP's one-point crossover draws from `list(set_of_types)`. A class hashes by its address by
    default, which would make a seeded search differ from one process to the next.
    """

    def __hash__(cls) -> int:
        return zlib.crc32(cls.__name__.encode())


class Sign(IntEnum):
    """What is known of the sign of a value; the more is known, the greater."""

    ANY = 0
    NONNEGATIVE = 1
    POSITIVE = 2


class Elements(metaclass=ValueType):
    """A value a weight, shape `[out_features, in_features]`."""


class Inputs(Elements):
    """A value an input feature, shape `[in_features]`."""


class Outputs(Elements):
    """A value an output neuron, shape `[out_features]`."""


class Units(metaclass=ValueType):
    """A value a prunable unit (a decoder block or a linear layer), shape `[units]`."""


class Profile(Units):
    """How much sparser each unit is than the others, shape `[units]`, in shares of its weights.

    Only differences count: the budget adds what makes the whole meet its target.
    """


class Flat(metaclass=ValueType):
    """The scores of a unit's layers in one vector, or a number made of them, as DSA's code does.

    The one type whose values may be NaN or infinite; `dsa_importance` ends it.
    """


class Joint(metaclass=ValueType):
    """A metric and an allocation: all that says which weights go."""


class Constant(Inputs, Outputs, Profile):
    """One number, the same for every weight and every unit."""


_AXES: dict[ValueType, frozenset[str]] = {
    Elements: frozenset({"in", "out"}),
    Inputs: frozenset({"in"}),
    Outputs: frozenset({"out"}),
    Units: frozenset({"unit"}),
    Profile: frozenset({"unit"}),
    Constant: frozenset(),
}


def axes_of(type_: ValueType) -> frozenset[str]:
    """The axes of the weight matrix, or of the units, along which a value of this type varies."""
    return _AXES[type_]
