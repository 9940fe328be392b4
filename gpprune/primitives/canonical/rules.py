"""The value form: algebra that keeps every score, primitive by primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch

from gpprune.primitives.canonical.algebra import (
    absolute,
    add,
    constant,
    from_atom,
    from_monomial,
    inverse,
    multiply,
    power,
    scale,
    single,
)
from gpprune.primitives.canonical.atoms import LAYER, Atom, Monomial, Sum, chained
from gpprune.primitives.types import Sign, axes_of
from gpprune.primitives.units.terminals import LEAVES
from gpprune.primitives.weights.lowering import TINY
from gpprune.primitives.weights.primitive import Primitive
from gpprune.primitives.weights.reach import LOG_LARGEST, LOG_TINY, mul, of_number
from gpprune.primitives.weights.table import PRIMITIVES


def normal(node: Any, arguments: list[Sum]) -> Sum:
    """The form of a terminal, a constant or a primitive of metrics on forms."""
    if node.arity:
        entry = PRIMITIVES[node.name]
        value = applied(entry, arguments)
        if _is_exact(entry, arguments, value):
            return value
        # more is known of sums whose first term is above 0: that they do not cancel, say
        arguments, flip = _upright(entry, arguments)
        value = applied(entry, arguments)
        if not _is_exact(entry, arguments, value):
            value = _sealed(entry, arguments, value)
        return scale(value, flip)
    if isinstance(node.value, float):
        return constant(node.value)
    leaf = LEAVES[node.value]
    # a measurement that is positive on every model may be given as 0, and `div(D, D)` is 0 there
    sign = min(leaf.sign, Sign.NONNEGATIVE)
    return from_atom(Atom(node.value, axes_of(node.ret) | LAYER, sign, size=leaf.reach))


def applied(entry: Primitive, arguments: list[Sum]) -> Sum:
    """A primitive on forms, as if float32 had no ends."""
    if entry.name in RULES:
        return RULES[entry.name](*arguments)
    if entry.semilattice:
        return _extremum(entry, *arguments)
    if entry.over_norm:
        return _over_norm(entry, *arguments)
    if entry.lowering.apply is None and (entry.linear or entry.homogeneous):
        return _reduced(entry, *arguments)
    return _called(entry, arguments)


def _stays(entry: Primitive, arguments: list[Sum]) -> bool:
    """Whether what the primitive computes stays in float32's range."""
    below = [argument.reach for argument in arguments]
    if entry.scale_free and not below[0].nonnegative:
        return mul(below[0], of_number(2.0)).in_range  # they take one of its values from another
    if entry.reach(*below).in_range:
        return True
    return entry.name == "div" and len({absolute(argument).text for argument in arguments}) == 1


def _is_exact(entry: Primitive, arguments: list[Sum], value: Sum) -> bool:
    """Whether neither the primitive nor what it comes to leaves float32's range."""
    return (value.number is not None or _stays(entry, arguments)) and value.in_range


def _upright(entry: Primitive, arguments: list[Sum]) -> tuple[list[Sum], float]:
    """Arguments of an odd or even primitive without signs that it hands on, and that sign."""
    x, *rest = arguments
    if entry.even and absolute(x).in_range:
        return [absolute(x), *rest], 1.0
    return _turned(arguments) if entry.odd and rest else (arguments, 1.0)


def _sealed(entry: Primitive, arguments: list[Sum], value: Sum) -> Sum:
    """A primitive that may saturate, which no algebra looks into; its signs are no matter of size.

    Args:
        entry: the primitive.
        arguments: of it, upright.
        value: what it would be if it did not saturate.
    """
    if entry.commutative:
        arguments = sorted(arguments, key=lambda argument: argument.text)
    atom = replace(_atom(entry, arguments), sealed=True)
    return from_atom(_signed(atom, value.sign))


def _turned(arguments: Sequence[Sum]) -> tuple[list[Sum], float]:
    """Arguments of an odd primitive with their first term above 0, and the sign that it leaves."""
    signs = [-1.0 if argument.leads_below_0 else 1.0 for argument in arguments]
    return [scale(a, sign) for a, sign in zip(arguments, signs, strict=True)], math.prod(signs)


def _signed(atom: Atom, sign: Sign) -> Atom:
    """The atom with what is known of its sign; what may come to nothing is not positive."""
    known = max(sign, atom.sign)
    if known is Sign.POSITIVE and not atom.reach.is_normal:
        known = Sign.NONNEGATIVE
    return replace(atom, sign=known)


def _called(entry: Primitive, arguments: list[Sum]) -> Sum:
    """A primitive that no rule rewrites, by its declared facts."""
    if not entry.lowering.reductions:
        numbers = [argument.number for argument in arguments]
        if all(number is not None for number in numbers):
            known = [float(number) for number in numbers if number is not None]
            return constant(_folded(entry, known))
    x, *rest = arguments
    if entry.idempotent and x.text == rest[0].text:
        return x
    if entry.even:
        x = absolute(x)
    if entry.scale_free:
        return _scale_free(entry, x)
    arguments, flip = _turned([x, *rest]) if entry.odd else ([x, *rest], 1.0)
    if entry.commutative:
        arguments = sorted(arguments, key=lambda argument: argument.text)
    return scale(_applied(entry, *arguments), flip)


def _folded(entry: Primitive, numbers: list[float]) -> float:
    apply = entry.lowering.apply
    if apply is None:
        raise RuntimeError(f"{entry.name} has no reductions and nothing to apply")
    return float(apply(*(torch.tensor(n, dtype=torch.float64) for n in numbers)))


def _applied(entry: Primitive, *arguments: Sum) -> Sum:
    return from_atom(_atom(entry, arguments))


def _atom(entry: Primitive, arguments: Sequence[Sum]) -> Atom:
    text = f"{entry.name}({', '.join(argument.text for argument in arguments)})"
    lowering = entry.lowering
    read = [arguments[at] for at in lowering.reads if at < len(arguments)]
    axes = frozenset[str]().union(*(argument.axes for argument in read))
    if lowering.apply is None:
        axes = arguments[0].axes - lowering.reductions[0].axes
    if lowering.reductions:  # even of a number: a layer has its own count of it
        axes |= LAYER
    sign = entry.sign
    if entry.odd and entry.increasing and not entry.scale_free:
        sign = arguments[0].sign
    atom = Atom(text, axes, Sign.ANY, entry.name, tuple(arguments))
    return _signed(atom, sign)


def _scale_free(entry: Primitive, x: Sum) -> Sum:
    """Normalisations ignore an added constant, a positive factor, and one another."""
    x = add(Sum({monomial: c for monomial, c in x.terms.items() if monomial}))
    if not x.terms:
        return Sum({})
    lead = x.ordered[0][1]
    flip = -1 if lead < 0 and entry.odd else 1
    x = scale(x, flip / abs(lead))
    coefficient, monomial = single(x)
    inner = alone(monomial)
    nested = PRIMITIVES.get(inner.op) if inner is not None else None
    # beside one that saturates, a z-score rounds small values away
    if inner and nested and nested.scale_free and not inner.args[0].saturates:
        return scale(_scale_free(entry, scale(inner.args[0], coefficient)), flip)
    return scale(_applied(entry, x), flip)


def alone(monomial: Monomial) -> Atom | None:
    """The atom of a monomial that is one atom to the power 1, sign included."""
    if len(monomial) != 1 or monomial[0].exponent != 1:
        return None
    factor = monomial[0]
    return factor.atom if factor.odd or factor.atom.sign is not Sign.ANY else None


def _log(x: Sum) -> Sum:
    x = absolute(x)
    inner = alone(single(x)[1]) if x.terms else None
    if inner is None or inner.op != "exp" or single(x)[0] != 1:
        return _called(PRIMITIVES["log"], [x])
    # beside values that saturate there are some so small that their exponential is 1
    saturates = inner.args[0].saturates
    return _called(PRIMITIVES["log"], [x]) if saturates else _clamped(inner.args[0])


def _clamped(x: Sum) -> Sum:
    """What log(exp(x)) is: x, unless exp left float32's range or log met its smallest."""
    size = PRIMITIVES["exp"].reach(x.reach)
    if size.in_range and size.is_normal:
        return x
    low, high = constant(LOG_TINY), constant(LOG_LARGEST)
    return _extremum(PRIMITIVES["max"], _extremum(PRIMITIVES["min"], x, high), low)


def _exp(x: Sum) -> Sum:
    inner = alone(single(x)[1]) if x.terms else None
    if inner is not None and inner.op == "log" and single(x)[0] == 1:
        size = absolute(inner.args[0])  # as log does, which is bounded below
        least = constant(TINY)
        whole = size.sign is Sign.POSITIVE and size.reach.is_normal
        return size if whole else _extremum(PRIMITIVES["max"], size, least)
    return _called(PRIMITIVES["exp"], [x])


def _extremum(entry: Primitive, *arguments: Sum) -> Sum:
    """A maximum, or what else is commutative, associative and idempotent: each part once."""
    parts: dict[str, Sum] = {}
    for value in arguments:
        atom = alone(single(value)[1]) if len(value.terms) == 1 else None
        nested = atom is not None and atom.op == entry.name and single(value)[0] == 1
        for part in atom.args if atom is not None and nested else (value,):
            parts[part.text] = part
    numbers = [part.number for part in parts.values() if part.number is not None]
    if len(numbers) > 1:
        pick = reduce(lambda x, y: _folded(entry, [x, y]), numbers)
        parts = {text: part for text, part in parts.items() if part.number is None}
        parts[constant(pick).text] = constant(pick)
    ordered = [parts[text] for text in sorted(parts)]
    if len(ordered) == 1:
        return ordered[0]
    text = chained(entry.name, [part.text for part in ordered])
    signs = [part.sign for part in ordered]
    axes = frozenset[str]().union(*(part.axes for part in ordered))
    sign = entry.sign if entry.sign_of is None else entry.sign_of(signs)
    return from_atom(Atom(text, axes, sign, entry.name, tuple(ordered)))


def _reduced(entry: Primitive, x: Sum) -> Sum:
    """A sum, mean or norm: what does not vary along the reduced axis moves out of it."""
    if not x.terms:
        return Sum({})
    (reduction,) = entry.lowering.reductions
    coefficient, monomial = single(x)
    moves = [not p.atom.axes & reduction.axes for p in monomial]
    fixed = from_monomial([p for p, out in zip(monomial, moves, strict=True) if out], coefficient)
    inner = from_monomial([p for p, out in zip(monomial, moves, strict=True) if not out])
    if entry.homogeneous:
        fixed, inner = absolute(fixed), absolute(inner)
    if reduction.kind == "mean" and inner.number == 1:
        return fixed
    if entry.linear and _is_centred(inner, reduction.axes):
        return Sum({})
    sign = Sign.NONNEGATIVE if entry.homogeneous and inner.sign is Sign.ANY else inner.sign
    axes = (inner.axes - reduction.axes) | LAYER
    atom = Atom(f"{entry.name}({inner.text})", axes, sign, entry.name, (inner,))
    return multiply(fixed, from_atom(atom))


def _is_centred(x: Sum, axes: frozenset[str]) -> bool:
    """Whether it is a z-score of what varies along these axes alone: its mean along them is 0."""
    atom = alone(single(x)[1]) if x.terms else None
    if atom is None or atom.sealed:  # where it saturates it is not centred
        return False
    entry = PRIMITIVES.get(atom.op)
    return entry is not None and entry.centred and atom.axes <= axes | LAYER


def _over_norm(entry: Primitive, x: Sum, y: Sum) -> Sum:
    """Over a norm: constant factors move out."""
    if not x.terms or not y.terms:
        return Sum({})
    (a, left), (b, right) = single(x), single(y)
    divisor = absolute(from_monomial(right))
    result = _applied(entry, from_monomial(left), divisor)
    ((monomial, _),) = result.terms.items()
    if from_monomial(left).sign is not Sign.ANY:
        atom = monomial[0].atom
        result = from_atom(Atom(atom.text, atom.axes, Sign.NONNEGATIVE, atom.op, atom.args))
    return multiply(constant(a), multiply(inverse(constant(abs(b))), result))


RULES: dict[str, Callable[..., Sum]] = {
    "add": add,
    "sub": lambda x, y: add(x, scale(y, -1)),
    "mul": multiply,
    "div": lambda x, y: multiply(x, inverse(y)),
    "neg": lambda x: scale(x, -1),
    "abs": absolute,
    "sqr": lambda x: power(x, 2.0),
    "sqrt": lambda x: power(x, 0.5),
    "pow": lambda x, exponent: power(x, exponent.number),
    "log": _log,
    "exp": _exp,
}
"""The primitives that the algebra is made of; the facts of the others say all."""
