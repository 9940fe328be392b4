"""The canonical form: formulas that always give the same mask become one formula.

Two levels. The *value* form applies algebra that keeps every score (commutativity, like terms and
powers, Pruner-Zero's opposing pairs such as exp/log and sqrt/sqr, invariances of the
normalisations). The *rank* form keeps only the order of scores inside a comparison group: it
strips outer strictly increasing functions, positive factors and terms that are constant inside
the group, and a common power. A factor that is zero for a whole group is treated as positive:
scores that are all equal carry no order to lose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .algebra import (
    Atom,
    Monomial,
    Power,
    Sign,
    Sum,
    absolute,
    add,
    chained,
    constant,
    from_atom,
    from_monomial,
    inverse,
    monomial_axes,
    multiply,
    power,
    scale,
    single,
)
from .lowering import TINY
from .nodes import Node, fold, quantise, word
from .table import PRIMITIVES, Primitive
from .types import Elements, Joint, Units, axes_of
from .unit_table import UNIT_PRIMITIVES, UnitPrimitive

_UNIT = frozenset({"unit"})
_MADE_OF_UNITS = frozenset(UNIT_PRIMITIVES)
_GROUPS: dict[str, frozenset[str]] = {"layer": frozenset(), "row": frozenset({"out"})}


def canonical_text(nodes: Sequence[Node], group: str | None) -> str:
    """Formula text of the canonical form of a tree; see `Formula.canonical`."""
    if group is not None and group not in _GROUPS:
        raise ValueError(f"unknown comparison group {group!r}; there are {sorted(_GROUPS)}")
    if nodes[0].ret is Joint:
        return _joint_text(nodes, group)
    value, _ = fold(nodes, _typed)
    if group is None:
        return value.text
    if issubclass(nodes[0].ret, Units):
        return _only_differences(value).text
    return _ranked(value, _GROUPS[group]).text


def _joint_text(nodes: Sequence[Node], group: str | None) -> str:
    """A joint formula's parts in their forms.

    Where the allocation reads the scores, their values matter and not their order alone.
    """
    end = 1
    open_ = 1
    while open_:
        open_ += nodes[end].arity - 1
        end += 1
    allocation = canonical_text(nodes[end:], group)
    reads = re.search(r"\bS\b", allocation) is not None
    metric = canonical_text(nodes[1:end], None if reads else group)
    return f"{nodes[0].name}({metric}, {allocation})"


def _only_differences(profile: Sum) -> Sum:
    """A profile without what it adds to every unit, which the budget takes away again."""
    return Sum({m: c for m, c in profile.terms.items() if monomial_axes(m)})


class IrreducibleError(Exception):
    """The formula means something that its canonical form would not."""


def _typed(node: Any, below: list[tuple[Sum, frozenset[str]]]) -> tuple[Sum, frozenset[str]]:
    """A node's normal form, and the axes that its tree, unsimplified, varies along.

    Pruner-Zero's norms and z-scores are over the shape that their arguments happen to have, so
    they bar an algebra that changes it: `pz_zsn(add(X, sub(W, W)))` is not `pz_zsn(X)`.
    """
    values = [value for value, _ in below]
    if not node.arity:
        return _normal(node, values), axes_of(node.ret)
    axes = frozenset[str]().union(*(found for _, found in below))
    if node.name in UNIT_PRIMITIVES:
        return _of_units(UNIT_PRIMITIVES[node.name], values), _UNIT
    lowering = PRIMITIVES[node.name].lowering
    if any(reduction.over == "arguments" for reduction in lowering.reductions):
        if axes != frozenset[str]().union(*(value.axes for value in values)):
            raise IrreducibleError
    elif lowering.apply is None:
        axes -= {lowering.reductions[0].axis}
    return _normal(node, values), axes


def _of_units(entry: UnitPrimitive, arguments: list[Sum]) -> Sum:
    """A unit primitive: arithmetic as for weights, everything else as it stands."""
    name = word(entry.name)
    of_weights = entry.arguments[0] is Elements
    shared = None if of_weights else PRIMITIVES.get(name)
    if shared is not None:
        rule = _RULES.get(name)
        return rule(*arguments) if rule else _call(shared, arguments)
    x, *rest = arguments
    if entry.factor_free:
        arguments = [_unscaled(x), *rest]
    elif entry.scale_free:
        arguments = [_ordered(x) if of_weights else _shape(x), *rest]
    if name == "spread":
        return _spread(entry, *arguments)
    text = f"{name}({', '.join(argument.text for argument in arguments)})"
    sign = Sign.POSITIVE if entry.positive else Sign.NONNEGATIVE if entry.nonnegative else Sign.ANY
    # what is made of numbers alone is the same for every unit, save that a running sum rises and
    # that a unit's weights may be more than another's
    fixed = name != "cumsum" and not of_weights
    fixed = fixed and all(_same_everywhere(argument) for argument in arguments)
    axes = frozenset[str]() if fixed else _UNIT
    return from_atom(Atom(text, axes, sign, entry.name, tuple(arguments)))


def _spread(entry: UnitPrimitive, x: Sum, amplitude: Sum) -> Sum:
    """The amplitude is a factor, so that ranges of one shape add up."""
    if not x.terms:
        return Sum({})
    axes = frozenset[str]() if _same_everywhere(x) else _UNIT
    scaled = f"{word(entry.name)}({x.text}, {{}})"
    atom = Atom(scaled.format(1), axes, Sign.NONNEGATIVE, entry.name, (x,), scaled)
    return multiply(amplitude, from_atom(atom))


def _same_everywhere(x: Sum) -> bool:
    """Whether a value is one number for all units; a layer's own sums are not."""
    return all(atom.op in _MADE_OF_UNITS and not atom.axes for atom in _atoms(x))


def _atoms(x: Sum) -> Iterator[Atom]:
    return (factor.atom for monomial in x.terms for factor in monomial)


def _shape(x: Sum) -> Sum:
    """What a min-max leaves of its argument: not what is added, nor a positive factor.

    So nothing of a range that the argument was given before.
    """
    x = _unscaled(_only_differences(x))
    if len(x.terms) != 1:
        return x
    coefficient, monomial = single(x)
    inner = _alone(monomial)
    if inner is None or inner.op != "profile.spread":
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
    return from_monomial(_primitive_powers(monomial), coefficient)


def _unscaled(x: Sum) -> Sum:
    """A value without its positive factor."""
    return scale(x, 1 / abs(x.ordered[0][1])) if x.terms else x


def _normal(node: Any, arguments: list[Sum]) -> Sum:
    if node.arity:
        rule = _RULES.get(node.name)
        return rule(*arguments) if rule else _call(PRIMITIVES[node.name], arguments)
    if isinstance(node.value, float):
        return constant(node.value)
    sign = Sign.ANY if node.value in ("W", "S") else Sign.NONNEGATIVE
    return from_atom(Atom(node.value, axes_of(node.ret), sign))


def _call(entry: Primitive, arguments: list[Sum]) -> Sum:
    """A primitive without a rule of its own, by its declared facts."""
    if not entry.lowering.reductions:
        numbers = [argument.number for argument in arguments]
        if all(number is not None for number in numbers):
            return _folded(entry, [float(number) for number in numbers if number is not None])
    x = arguments[0]
    if entry.even:
        x = absolute(x)
    if entry.scale_free:
        return _scale_free(entry, x)
    if entry.odd and x.ordered and x.ordered[0][1] < 0:
        return scale(_applied(entry, scale(x, -1)), -1)
    return _applied(entry, x, *arguments[1:])


def _folded(entry: Primitive, numbers: list[float]) -> Sum:
    apply = entry.lowering.apply
    if apply is None:
        raise RuntimeError(f"{entry.name} has no reductions and nothing to apply")
    return constant(float(apply(*(torch.tensor(n, dtype=torch.float64) for n in numbers))))


def _applied(entry: Primitive, *arguments: Sum) -> Sum:
    text = f"{entry.name}({', '.join(argument.text for argument in arguments)})"
    axes = frozenset[str]().union(*(argument.axes for argument in arguments))
    sign = Sign.POSITIVE if entry.positive else Sign.NONNEGATIVE if entry.nonnegative else Sign.ANY
    if entry.odd and entry.increasing and not entry.scale_free:
        sign = arguments[0].sign
    return from_atom(Atom(text, axes, sign, entry.name, arguments))


def _scale_free(entry: Primitive, x: Sum) -> Sum:
    """Normalisations ignore an added constant, a positive factor, and one another."""
    x = add(Sum({monomial: c for monomial, c in x.terms.items() if monomial}))
    if not x.terms:
        return Sum({})
    lead = x.ordered[0][1]
    flip = -1 if lead < 0 and entry.odd else 1
    x = scale(x, flip / abs(lead))
    coefficient, monomial = single(x)
    inner = _alone(monomial)
    if inner is not None and inner.op in PRIMITIVES and PRIMITIVES[inner.op].scale_free:
        return scale(_scale_free(entry, scale(inner.args[0], coefficient)), flip)
    return scale(_applied(entry, x), flip)


def _alone(monomial: Monomial) -> Atom | None:
    """The atom of a monomial that is one atom to the power 1, sign included."""
    if len(monomial) != 1 or monomial[0].exponent != 1:
        return None
    factor = monomial[0]
    return factor.atom if factor.odd or factor.atom.sign is not Sign.ANY else None


def _log(x: Sum) -> Sum:
    inner = _alone(single(x)[1]) if x.terms else None
    if inner is not None and inner.op == "exp" and single(x)[0] == 1:
        return inner.args[0]
    return _call(PRIMITIVES["log"], [x])


def _exp(x: Sum) -> Sum:
    inner = _alone(single(x)[1]) if x.terms else None
    if inner is not None and inner.op == "log" and single(x)[0] == 1:
        size = inner.args[0]  # log made it |.|, and is bounded below
        least = constant(TINY)
        return size if size.sign is Sign.POSITIVE else _extremum("max")(size, least)
    return _call(PRIMITIVES["exp"], [x])


def _extremum(name: str) -> Callable[[Sum, Sum], Sum]:
    def rule(x: Sum, y: Sum) -> Sum:
        parts: dict[str, Sum] = {}
        for value in (x, y):
            atom = _alone(single(value)[1]) if len(value.terms) == 1 else None
            nested = atom is not None and atom.op == name and single(value)[0] == 1
            for part in atom.args if atom is not None and nested else (value,):
                parts[part.text] = part
        numbers = [part.number for part in parts.values() if part.number is not None]
        if len(numbers) > 1:
            pick = max(numbers) if name == "max" else min(numbers)
            parts = {text: part for text, part in parts.items() if part.number is None}
            parts[constant(pick).text] = constant(pick)
        ordered = [parts[text] for text in sorted(parts)]
        if len(ordered) == 1:
            return ordered[0]
        text = chained(name, [part.text for part in ordered])
        signs = [part.sign for part in ordered]
        axes = frozenset[str]().union(*(part.axes for part in ordered))
        sign = max(signs) if name == "max" else min(signs)
        return from_atom(Atom(text, axes, sign, name, tuple(ordered)))

    return rule


def _reduced(name: str) -> Callable[[Sum], Sum]:
    entry = PRIMITIVES[name]
    (reduction,) = entry.lowering.reductions
    left = frozenset({"out"} if reduction.axis == "in" else {"in"})

    def rule(x: Sum) -> Sum:
        """What does not vary along the reduced axis moves out of the reduction."""
        if not x.terms:
            return Sum({})
        coefficient, monomial = single(x)
        fixed = from_monomial([p for p in monomial if p.atom.axes <= left], coefficient)
        inner = from_monomial([p for p in monomial if not p.atom.axes <= left])
        if entry.homogeneous:
            fixed, inner = absolute(fixed), absolute(inner)
        if reduction.kind == "mean" and inner.number == 1:
            return fixed
        sign = Sign.NONNEGATIVE if entry.homogeneous and inner.sign is Sign.ANY else inner.sign
        atom = Atom(f"{name}({inner.text})", inner.axes & left, sign, name, (inner,))
        return multiply(fixed, from_atom(atom))

    return rule


def _pz_div(x: Sum, y: Sum) -> Sum:
    if not x.terms or not y.terms:
        return Sum({})
    (a, left), (b, right) = single(x), single(y)
    divisor = absolute(from_monomial(right))
    result = _applied(PRIMITIVES["pz_div"], from_monomial(left), divisor)
    ((monomial, _),) = result.terms.items()
    if from_monomial(left).sign is not Sign.ANY:
        atom = monomial[0].atom
        result = from_atom(Atom(atom.text, atom.axes, Sign.NONNEGATIVE, atom.op, atom.args))
    return multiply(constant(a), multiply(inverse(constant(abs(b))), result))


_RULES: dict[str, Callable[..., Sum]] = {
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
    "max": _extremum("max"),
    "min": _extremum("min"),
    "pz_div": _pz_div,
    **{
        name: _reduced(name)
        for name in ("rowsum", "colsum", "rowmean", "colmean", "rownorm", "colnorm")
    },
}


def _ranked(value: Sum, fixed: frozenset[str]) -> Sum:
    """Strip what does not change the order of scores where axes in `fixed` are constant."""
    for _ in range(64):
        before = value.text
        value = _ranked_once(value, fixed)
        if value.text == before:
            break
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
        if factor.atom.op == "pz_div":  # its divisor is one positive number for the layer
            factors.extend(_raised(factor))
            continue
        factors.append(factor)
    stripped = from_monomial(factors, direction)
    _, monomial = single(stripped)
    return _unwrapped(_primitive_powers(monomial), direction)


def _raised(factor: Power) -> list[Power]:
    """The dividend of a `pz_div` in place of it; a `pz_div`'s dividend is one monomial."""
    _, monomial = single(factor.atom.args[0])
    return [Power(p.atom, p.exponent * factor.exponent, p.odd and factor.odd) for p in monomial]


def _primitive_powers(monomial: Monomial) -> Monomial:
    """Scale the exponents to the integers 1 and 2 where those do, else to a greatest of 1.

    Larger integers would carry scores out of float32's range.
    """
    sizes = [abs(p.exponent) for p in monomial if p.exponent]
    if not sizes:
        return monomial
    whole = [quantise(2 * size / max(sizes)) for size in sizes]
    step = max(sizes) / 2 if set(whole) == {1.0, 2.0} else max(sizes)
    return single(from_monomial(Power(p.atom, p.exponent / step, p.odd) for p in monomial))[1]


def _unwrapped(monomial: Monomial, direction: float) -> Sum:
    """An increasing function that is the whole score is its argument."""
    whole = from_monomial(monomial, direction)
    if len(monomial) != 1 or monomial[0].exponent <= 0:
        return whole
    factor = monomial[0]
    entry = PRIMITIVES.get(factor.atom.op)
    inner = factor.atom.args[0] if factor.atom.args else None
    signed = factor.odd or factor.atom.sign is not Sign.ANY
    if inner is None:
        return whole
    if factor.atom.op == "sum":
        return scale(inner, direction) if signed else scale(absolute(inner), direction)
    if entry is None or not entry.increasing:
        return whole
    if signed:
        return scale(inner, direction)
    if entry.odd and not entry.scale_free:
        return scale(absolute(inner), direction)
    return whole
