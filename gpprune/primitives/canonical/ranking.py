"""The rank form: of a metric's value, what decides the order of scores inside a group."""

from __future__ import annotations

from gpprune.primitives.canonical.algebra import absolute, add, from_monomial, scale, single
from gpprune.primitives.canonical.atoms import LAYER, Monomial, Power, Sum, monomial_axes
from gpprune.primitives.nodes import quantise
from gpprune.primitives.types import Sign
from gpprune.primitives.weights.lowering import Reduction
from gpprune.primitives.weights.table import PRIMITIVES


def ranked(value: Sum, fixed: frozenset[str]) -> Sum:
    """Strip what does not change the order of scores where axes in `fixed` are constant."""
    for _ in range(64):
        found = _ranked_once(value, fixed)
        if found.text == value.text or not found.in_range:
            break
        value = found
    return value


def _ranked_once(value: Sum, fixed: frozenset[str]) -> Sum:
    value = Sum({m: c for m, c in value.terms.items() if not monomial_axes(m) <= fixed})
    if not value.terms:
        return value
    if len(value.terms) > 1:
        return add(scale(value, 1 / abs(value.ordered[0][1])))
    coefficient, monomial = single(value)
    direction = 1.0 if coefficient > 0 else -1.0
    factors: list[Power] = []
    for factor in monomial:
        if factor.atom.axes <= fixed and not factor.odd:
            continue
        # its divisor is one positive number for the layer
        entry = PRIMITIVES.get(factor.atom.op) if fixed >= LAYER else None
        if entry is not None and entry.over_norm and not factor.atom.sealed:
            factors.extend(_raised(factor))
            continue
        factors.append(factor)
    stripped = from_monomial(factors, direction)
    _, monomial = single(stripped)
    simple = primitive_powers(monomial)
    if from_monomial(simple).in_range:
        monomial = simple
    return _unwrapped(monomial, direction, fixed)


def _raised(factor: Power) -> list[Power]:
    """The dividend in place of what is over a norm; it is one monomial."""
    _, monomial = single(factor.atom.args[0])
    return [Power(p.atom, p.exponent * factor.exponent, p.odd and factor.odd) for p in monomial]


def primitive_powers(monomial: Monomial) -> Monomial:
    """Scale the exponents to the integers 1 and 2 where those do, else to a greatest of 1.

    Larger integers would carry scores out of float32's range.
    """
    sizes = [abs(p.exponent) for p in monomial if p.exponent]
    if not sizes:
        return monomial
    whole = [quantise(2 * size / max(sizes)) for size in sizes]
    step = max(sizes) / 2 if set(whole) == {1.0, 2.0} else max(sizes)
    return single(from_monomial(Power(p.atom, p.exponent / step, p.odd) for p in monomial))[1]


def _unwrapped(monomial: Monomial, direction: float, fixed: frozenset[str]) -> Sum:
    """An increasing function that is the whole score is its argument."""
    whole = from_monomial(monomial, direction)
    if len(monomial) != 1 or monomial[0].exponent <= 0:
        return whole
    factor = monomial[0]
    if factor.atom.sealed:
        opened = _opened(factor, fixed)
        if opened is not None:
            return scale(opened, direction)
    entry = PRIMITIVES.get(factor.atom.op)
    inner = factor.atom.args[0] if factor.atom.args else None
    signed = factor.odd or factor.atom.sign is not Sign.ANY
    if inner is None:
        return whole
    if factor.atom.op == "sum":
        return scale(inner, direction) if signed else scale(absolute(inner), direction)
    if entry is None or not entry.increasing:
        return whole
    if entry.lowering.reductions and not fixed >= LAYER:  # it increases in each layer by itself
        return whole
    if signed:
        return scale(absolute(inner) if entry.even else inner, direction)
    if entry.odd and not entry.scale_free:
        return scale(absolute(inner), direction)
    return whole


def _opened(factor: Power, fixed: frozenset[str]) -> Sum | None:
    """What a sealed primitive, the whole score, orders by; saturating only makes ties of it."""
    atom = factor.atom
    x, *rest = atom.args
    y = rest[0] if rest else x
    signed = factor.odd or atom.sign is not Sign.ANY
    lowering = PRIMITIVES[atom.op].lowering
    if lowering.apply is None and x.axes <= atom.axes:  # of what does not vary along the axis
        # how often, is the layer's own
        return _repeated(lowering.reductions[0], x, signed) if fixed >= LAYER else None
    match atom.op:
        case "pow" if (y.number or 0) > 0:
            return absolute(x)
        case "mul" | "div" if y.axes <= fixed and y.sign is not Sign.ANY and signed:
            return x
        case "mul" if x.axes <= fixed and x.sign is not Sign.ANY and signed:
            return y
        case "add" | "sub" if y.axes <= fixed and signed:
            return x
        case "add" if x.axes <= fixed and signed:
            return y
        case "sub" if x.axes <= fixed and signed:
            return scale(y, -1)
    return None


def _repeated(reduction: Reduction, x: Sum, signed: bool) -> Sum | None:
    """What the reduction of one value, so and so often, orders by."""
    if reduction.kind == "norm":
        return absolute(x)
    return x if reduction.kind == "sum" and signed else None
