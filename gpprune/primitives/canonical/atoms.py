"""What the normal form is made of: atoms, powers, monomials, sums of these, and their text.

A value is a sum of `coefficient * monomial`; a monomial is a product of `sign(a)**odd * |a|**e`
over atoms `a` (terminals, applied primitives, sums). Keeping the sign's parity beside a real
exponent makes one form of `x*x`, `sqr(x)`, `abs(x)*abs(x)` and `sqr(sqrt(sqr(x)))`, and keeps the
protected operators exact: `x / x` is the monomial with exponent 0, which is 1 except at 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from gpprune.primitives.nodes import number_text, quantise
from gpprune.primitives.types import Sign
from gpprune.primitives.weights.lowering import TINY
from gpprune.primitives.weights.reach import UNKNOWN, Reach, mul, of_number, total
from gpprune.primitives.weights.table import PRIMITIVES

LARGEST = 3.40282346638e38  # of a constant: float32's largest, rounded down to what prints exactly

LAYER = frozenset({"layer"})
"""The axis along which all that is read or reduced of a layer varies: another layer has another."""


@dataclass(frozen=True)
class Atom:
    """What a monomial is a product of; equal when the text is.

    `scaled` is its text with `{}` where a factor of it may be written, if there is such a place.
    `sealed` is a primitive that may leave float32's range, on its arguments as they stand. `size`
    is how far a terminal reaches.
    """

    text: str
    axes: frozenset[str] = field(compare=False)
    sign: Sign = field(compare=False)
    op: str = field(compare=False, default="")
    args: tuple[Sum, ...] = field(compare=False, default=())
    scaled: str | None = field(compare=False, default=None)
    sealed: bool = field(compare=False, default=False)
    size: Reach = field(compare=False, default=UNKNOWN)

    @cached_property
    def _unbounded(self) -> Reach:
        """How far it reaches before it saturates."""
        if not self.op:
            return self.size
        if self.op == "sum":
            return self.args[0].reach
        if self.op not in PRIMITIVES:
            return UNKNOWN
        return PRIMITIVES[self.op].reach(*(argument.reach for argument in self.args))

    @cached_property
    def reach(self) -> Reach:
        """How far it reaches."""
        return self._unbounded.clamped

    @cached_property
    def in_range(self) -> bool:
        """Whether only what is sealed in it may saturate."""
        if not all(argument.in_range for argument in self.args):
            return False
        return self.sealed or self._unbounded.in_range

    @cached_property
    def saturates(self) -> bool:
        """Whether something in it may saturate."""
        return self.sealed or any(argument.saturates for argument in self.args)


@dataclass(frozen=True)
class Power:
    """`sign(atom)**odd * |atom|**exponent`; never odd for an atom that cannot be negative."""

    atom: Atom
    exponent: float
    odd: bool


Monomial = tuple[Power, ...]  # ordered by the atoms' text; () is 1


@dataclass(frozen=True, eq=False)
class Sum:
    """An immutable sum; the empty one is 0."""

    terms: Mapping[Monomial, float]

    @cached_property
    def ordered(self) -> list[tuple[Monomial, float]]:
        """The terms by their text."""
        return sorted(self.terms.items(), key=lambda term: monomial_text(term[0]))

    @property
    def leads_below_0(self) -> bool:
        """Whether the coefficient of its first term is negative."""
        return bool(self.terms) and self.ordered[0][1] < 0

    @cached_property
    def text(self) -> str:
        """Formula text."""
        return sum_text(self)

    @property
    def number(self) -> float | None:
        """The value, if it is a constant."""
        if not self.terms:
            return 0.0
        return self.terms.get(()) if len(self.terms) == 1 else None

    @cached_property
    def axes(self) -> frozenset[str]:
        """The axes along which it varies."""
        return frozenset().union(*(monomial_axes(m) for m in self.terms))

    @cached_property
    def sign(self) -> Sign:
        """What the terms tell of its sign."""
        signs = [monomial_sign(m) if c > 0 else Sign.ANY for m, c in self.terms.items()]
        if not signs:
            return Sign.NONNEGATIVE
        return Sign.ANY if Sign.ANY in signs else max(signs)

    @property
    def reach(self) -> Reach:
        """How far it reaches."""
        return self._range[0]

    @property
    def in_range(self) -> bool:
        """Whether nothing that its text computes may saturate but what is sealed in it.

        Nor has a coefficient been cut off.
        """
        return self._range[1]

    @property
    def saturates(self) -> bool:
        """Whether something in it may saturate."""
        return any(p.atom.saturates for m in self.terms for p in m)

    @cached_property
    def _range(self) -> tuple[Reach, bool]:
        within = all(TINY < abs(coefficient) < LARGEST for coefficient in self.terms.values())
        if self.number is not None:
            return of_number(self.number), within
        known = self.sign is not Sign.ANY
        parts = []
        for monomial, coefficient in self.terms.items():
            found, fits = _monomial_range(monomial)
            within = within and fits
            parts.append(mul(found, of_number(coefficient)))
        low, high, _ = total(parts, nonnegative=known) if len(parts) > 1 else parts[0]
        reach = Reach(low, high, known)
        return reach, within and reach.in_range


def _monomial_range(monomial: Monomial) -> tuple[Reach, bool]:
    """How far a monomial reaches, and whether all that its text computes on the way is in range."""
    value, over, under = Reach(0.0, 0.0), Reach(0.0, 0.0), Reach(0.0, 0.0)
    within = True
    for p in monomial:
        within = within and p.atom.in_range
        size, exponent = p.atom.reach, abs(p.exponent)
        value = mul(value, size.to(p.exponent))
        bare = p.odd and exponent not in (0, 1)  # then its text is that of the atom, times a power
        for factor in [size, size.to(exponent - 1)] if bare else [size.to(exponent)]:
            if p.exponent < 0:
                under = under.widened(factor)
            else:
                over = over.widened(factor)
    return value, within and value.in_range and over.in_range and under.in_range


def monomial_axes(monomial: Monomial) -> frozenset[str]:
    """The axes along which a monomial varies."""
    return frozenset().union(*(p.atom.axes for p in monomial))


def monomial_sign(monomial: Monomial) -> Sign:
    """What the atoms tell of a monomial's sign."""
    if any(p.odd for p in monomial):
        return Sign.ANY
    strict = all(p.atom.sign is Sign.POSITIVE for p in monomial)
    return Sign.POSITIVE if strict else Sign.NONNEGATIVE


def monomial_text(monomial: Monomial) -> str:
    """Formula text of a monomial: `div(numerator, denominator)`."""
    over = [part for p in monomial if p.exponent >= 0 for part in _power_text(p)]
    under = [part for p in monomial if p.exponent < 0 for part in _power_text(p)]
    top = _product(over) or "1"
    return f"div({top}, {_product(under)})" if under else top


def _power_text(p: Power) -> list[str]:
    text, exponent = p.atom.text, abs(p.exponent)
    if exponent == 0:
        return [f"div({text}, {f'abs({text})' if p.odd else text})"]
    if p.odd and exponent != 1:
        return [text, f"pow({text}, {number_text(quantise(exponent - 1))})"]
    if exponent == 1:
        return [text if p.odd or p.atom.sign is not Sign.ANY else f"abs({text})"]
    if exponent == 2:
        return [f"sqr({text})"]
    return [f"sqrt({text})" if exponent == 0.5 else f"pow({text}, {number_text(exponent)})"]


def _product(parts: list[str]) -> str:
    return chained("mul", parts) if parts else ""


def chained(name: str, parts: list[str]) -> str:
    """Nested calls of a binary primitive; a long chain as a balanced tree, to stay shallow."""
    if len(parts) > 8:
        half = len(parts) // 2
        return f"{name}({chained(name, parts[:half])}, {chained(name, parts[half:])})"
    text = parts[0]
    for part in parts[1:]:
        text = f"{name}({text}, {part})"
    return text


def sum_text(value: Sum) -> str:
    """Formula text of a sum: the terms in order, the first positive one first."""
    terms = value.ordered
    if len(terms) > 8:
        return chained("add", [_term_text(*term) for term in terms])
    first = next((n for n, (_, c) in enumerate(terms) if c > 0), 0)
    text = ""
    for monomial, coefficient in [*terms[first : first + 1], *terms[:first], *terms[first + 1 :]]:
        if not text:
            text = _term_text(monomial, coefficient)
        elif coefficient > 0:
            text = f"add({text}, {_term_text(monomial, coefficient)})"
        else:
            text = f"sub({text}, {_term_text(monomial, -coefficient)})"
    return text or "0"


def _term_text(monomial: Monomial, coefficient: float) -> str:
    if not monomial:
        return number_text(coefficient)
    first = monomial[0]
    if first.atom.scaled is not None and len(monomial) == 1 and first.exponent == 1:
        return first.atom.scaled.format(number_text(coefficient))
    text = monomial_text(monomial)
    if coefficient == 1:
        return text
    return f"neg({text})" if coefficient == -1 else f"mul({number_text(coefficient)}, {text})"
