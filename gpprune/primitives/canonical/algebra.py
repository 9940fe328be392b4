"""The algebra of the normal form: sums of monomials over real powers, see `atoms`."""

from __future__ import annotations

from collections.abc import Iterable

from gpprune.primitives.canonical.atoms import LARGEST, Atom, Monomial, Power, Sum
from gpprune.primitives.nodes import quantise
from gpprune.primitives.types import Sign
from gpprune.primitives.weights.lowering import TINY

MAX_TERMS = 24  # past this a product of sums is left as a product
MAX_TEXT = 4_000  # characters; past this likewise, since every term copies its factors


def constant(value: float) -> Sum:
    """A number as a sum."""
    value = quantise(max(-LARGEST, min(LARGEST, value)))
    return Sum({(): value} if value else {})


def from_atom(atom: Atom) -> Sum:
    """An atom as a sum."""
    return Sum({(Power(atom, 1.0, atom.sign is Sign.ANY),): 1.0})


def from_monomial(powers: Iterable[Power], coefficient: float = 1.0) -> Sum:
    """The product of the powers, like atoms collected."""
    collected: dict[Atom, tuple[float, bool]] = {}
    for power in powers:
        exponent, odd = collected.get(power.atom, (0.0, False))
        collected[power.atom] = (_limited(exponent + power.exponent), odd ^ power.odd)
    kept = (
        Power(atom, exponent, odd)
        for atom, (exponent, odd) in sorted(collected.items(), key=lambda item: item[0].text)
        if exponent or odd or atom.sign is not Sign.POSITIVE
    )
    return _flat(tuple(kept), coefficient) if coefficient else Sum({})


def _flat(monomial: Monomial, coefficient: float) -> Sum:
    """A term as a sum; one that is nothing but a sum is that sum."""
    if len(monomial) == 1 and monomial[0].exponent == 1 and monomial[0].atom.op == "sum":
        factor = monomial[0]
        if factor.odd or factor.atom.sign is not Sign.ANY:
            return scale(factor.atom.args[0], coefficient)
    return Sum({monomial: coefficient})


def single(value: Sum) -> tuple[float, Monomial]:
    """A nonzero sum as coefficient and monomial; several terms become one atom."""
    if len(value.terms) == 1:
        ((monomial, coefficient),) = value.terms.items()
        return coefficient, monomial
    content = value.ordered[0][1]
    inner = scale(value, 1 / content)
    atom = Atom(inner.text, inner.axes, inner.sign, "sum", (inner,))
    return content, (Power(atom, 1.0, atom.sign is Sign.ANY),)


def scale(value: Sum, factor: float) -> Sum:
    """`factor * value`."""
    return Sum({m: _bounded(c * factor) for m, c in value.terms.items()} if factor else {})


def multiply(x: Sum, y: Sum) -> Sum:
    """`x * y`; a sum of several terms takes part as one factor."""
    if not x.terms or not y.terms:
        return Sum({})
    (a, left), (b, right) = single(x), single(y)
    return from_monomial((*left, *right), _bounded(a * b))


def power(value: Sum, exponent: float) -> Sum:
    """`|value| ** exponent`; 0 to a negative power is 0, anything to the power 0 is 1."""
    if exponent == 0:
        return constant(1.0)
    if not value.terms:
        return Sum({})
    coefficient, monomial = single(value)
    return from_monomial(
        [Power(p.atom, _limited(p.exponent * exponent), False) for p in monomial],
        _raised(abs(coefficient), exponent),
    )


def inverse(value: Sum) -> Sum:
    """`1 / value`, and 0 at 0."""
    if not value.terms:
        return Sum({})
    coefficient, monomial = single(value)
    return from_monomial(
        [Power(p.atom, -p.exponent, p.odd) for p in monomial], _bounded(1 / coefficient)
    )


def absolute(value: Sum) -> Sum:
    """`|value|`."""
    return power(value, 1.0)


def add(*values: Sum) -> Sum:
    """The sum, with products of sums expanded, like terms collected, common factors taken out."""
    total = _collect([term for value in values for term in value.terms.items()])
    while len(total) < MAX_TERMS:
        opened = [term for item in total.items() for term in _opened(item, alone=len(total) == 1)]
        size = sum(len(p.atom.text) for monomial, _ in opened for p in monomial)
        if len(opened) == len(total) or len(opened) > MAX_TERMS or size > MAX_TEXT:
            break
        total = _collect(opened)
    return _factored(total)


def _collect(terms: Iterable[tuple[Monomial, float]]) -> dict[Monomial, float]:
    sums: dict[Monomial, float] = {}
    sizes: dict[Monomial, float] = {}
    for monomial, coefficient in terms:
        sums[monomial] = sums.get(monomial, 0.0) + coefficient
        sizes[monomial] = max(sizes.get(monomial, 0.0), abs(coefficient))
    # a coefficient that cancels but for float64 rounding is 0
    return {m: _bounded(c) for m, c in sums.items() if abs(c) > 1e-12 * sizes[m]}


def _opened(term: tuple[Monomial, float], *, alone: bool) -> list[tuple[Monomial, float]]:
    """A term with its first sum to the power 1 multiplied out; alone, a product is left be."""
    monomial, coefficient = term
    for at, factor in enumerate(monomial):
        whole = factor.odd or factor.atom.sign is not Sign.ANY
        if factor.atom.op == "sum" and factor.exponent == 1 and whole:
            rest = monomial[:at] + monomial[at + 1 :]
            if alone and rest:
                break
            inner = factor.atom.args[0].terms.items()
            parts = [from_monomial((*rest, *m), quantise(c * coefficient)) for m, c in inner]
            return [term for part in parts for term in part.terms.items()]
    return [term]


def _factored(terms: dict[Monomial, float]) -> Sum:
    if len(terms) < 2:
        return Sum(terms)
    common = _common([{p.atom: p for p in monomial} for monomial in terms])
    if not common:
        return Sum(terms)
    rest: dict[Monomial, float] = {}
    for monomial, coefficient in terms.items():
        left = [_less(p, common.get(p.atom)) for p in monomial]
        rest[tuple(p for p in left if p is not None)] = coefficient
    return multiply(from_monomial(common.values()), add(Sum(rest)))


def _common(terms: list[dict[Atom, Power]]) -> dict[Atom, Power]:
    shared: dict[Atom, Power] = {}
    for atom, first in terms[0].items():
        powers = [term[atom] for term in terms if atom in term]
        if len(powers) < len(terms) or any(p.odd != first.odd for p in powers):
            continue
        if all(p.exponent > 0 for p in powers):
            shared[atom] = min(powers, key=lambda p: p.exponent)
        elif all(p.exponent < 0 for p in powers):
            shared[atom] = max(powers, key=lambda p: p.exponent)
    return shared


def _less(factor: Power, taken: Power | None) -> Power | None:
    """What is left of a factor; a bare `[a != 0]` is implied by the factor taken out."""
    if taken is None:
        return factor
    exponent = quantise(factor.exponent - taken.exponent)
    return Power(factor.atom, exponent, False) if exponent else None


def _limited(exponent: float) -> float:
    return quantise(max(-LARGEST, min(LARGEST, exponent)))


def _bounded(value: float) -> float:
    size = max(TINY, min(LARGEST, abs(value)))
    found = quantise(size if value > 0 else -size) if value else 0.0
    # divided by a coefficient and multiplied again, 1 is 0.999999999999
    short = float(f"{found:.9g}")
    return short if abs(found - short) <= 2e-12 * size else found


def _raised(size: float, exponent: float) -> float:
    try:
        return _bounded(size**exponent)
    except OverflowError:
        return LARGEST
