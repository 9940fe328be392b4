"""The value form of allocations: what each unit primitive makes of normal forms."""

from __future__ import annotations

from collections.abc import Iterator

from gpprune.primitives.canonical.algebra import (
    from_atom,
    from_monomial,
    multiply,
    scale,
    single,
)
from gpprune.primitives.canonical.atoms import LAYER, Atom, Sum, monomial_axes
from gpprune.primitives.canonical.ranking import primitive_powers
from gpprune.primitives.canonical.rules import alone, applied
from gpprune.primitives.nodes import word
from gpprune.primitives.types import Elements, Sign
from gpprune.primitives.units.primitive import UnitPrimitive
from gpprune.primitives.units.table import UNIT_PRIMITIVES
from gpprune.primitives.weights.table import PRIMITIVES

UNIT = frozenset({"unit"})


def of_units(entry: UnitPrimitive, arguments: list[Sum]) -> Sum:
    """A unit primitive: arithmetic as for weights, everything else as it stands."""
    if entry.like:
        return applied(PRIMITIVES[entry.like], arguments)
    of_weights = entry.arguments[0] is Elements
    x, *rest = arguments
    if entry.factor_free:
        arguments = [_unscaled(x), *rest]
    elif entry.scale_free:
        arguments = [_ordered(x) if of_weights else _shape(x), *rest]
    if entry.scaled:
        return _scaled(entry, *arguments)
    text = f"{word(entry.name)}({', '.join(argument.text for argument in arguments)})"
    # what is made of numbers alone is the same for every unit, save that a running sum rises and
    # that a unit's weights may be more than another's
    fixed = not entry.uneven and not of_weights
    fixed = fixed and all(_same_everywhere(argument) for argument in arguments)
    axes = frozenset[str]() if fixed else UNIT
    return from_atom(Atom(text, axes, entry.sign, entry.name, tuple(arguments)))


def _scaled(entry: UnitPrimitive, x: Sum, amplitude: Sum) -> Sum:
    """The amplitude is a factor, so that ranges of one shape add up."""
    if not x.terms:
        return Sum({})
    axes = frozenset[str]() if _same_everywhere(x) else UNIT
    scaled = f"{word(entry.name)}({x.text}, {{}})"
    atom = Atom(scaled.format(1), axes, Sign.NONNEGATIVE, entry.name, (x,), scaled)
    return multiply(amplitude, from_atom(atom))


def _same_everywhere(x: Sum) -> bool:
    """Whether a value is one number for all units; a layer's own sums are not."""
    return all(atom.op in UNIT_PRIMITIVES and not atom.axes - LAYER for atom in _atoms(x))


def _atoms(x: Sum) -> Iterator[Atom]:
    return (factor.atom for monomial in x.terms for factor in monomial)


def _shape(x: Sum) -> Sum:
    """What a min-max leaves of its argument: not what is added, nor a positive factor.

    So nothing of a range that the argument was given before.
    """
    x = _unscaled(only_differences(x))
    if len(x.terms) != 1:
        return x
    coefficient, monomial = single(x)
    inner = alone(monomial)
    entry = UNIT_PRIMITIVES.get(inner.op) if inner is not None else None
    if inner is None or entry is None or not (entry.scaled and entry.scale_free):
        return x
    return _shape(scale(inner.args[0], -1.0 if coefficient < 0 else 1.0))


def _ordered(x: Sum) -> Sum:
    """What a threshold leaves of weights' values: their order over the whole model.

    What is the same throughout a layer is not throughout the model, so only numbers go.
    """
    x = _unscaled(Sum({monomial: c for monomial, c in x.terms.items() if monomial}))
    if len(x.terms) != 1:
        return x
    coefficient, monomial = single(x)
    if from_monomial(monomial).sign is Sign.ANY:
        return x
    simple = from_monomial(primitive_powers(monomial), coefficient)
    if not simple.in_range or simple.text == x.text:
        return x
    return _ordered(simple)  # the power may have been that of a sum, with a number in it


def _unscaled(x: Sum) -> Sum:
    """A value without its positive factor."""
    return scale(x, 1 / abs(x.ordered[0][1])) if x.terms else x


def only_differences(profile: Sum) -> Sum:
    """A profile without what it adds to every unit, which the budget takes away again."""
    # a unit is no part of a layer, even where its arithmetic is that of weights
    return Sum({m: c for m, c in profile.terms.items() if monomial_axes(m) - LAYER})
