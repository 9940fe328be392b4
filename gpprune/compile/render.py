"""A formula as a person reads it: unicode, LaTeX, MathML, one line, or Python to paste.

The closed form is sympy's printing of the formula with the protected operators written as what
they protect (`x / y` for "x / y, and 0 where y is 0"); the Python is exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import unescape

import sympy
from sympy.printing.mathml import mathml

from gpprune.compile.python import python_source
from gpprune.errors import UsageError
from gpprune.primitives import PRIMITIVES, Formula, Primitive, UnitPrimitive, fold, word
from gpprune.primitives.formula import folded_number
from gpprune.primitives.weights import symbolic as sym

minmax = sym.reduction("minmax", r"\operatorname{minmax}\left(%s\right)", nonnegative=True)
zscore = sym.reduction("zscore", r"\operatorname{zscore}\left(%s\right)")
sigmoid = sym.reduction("sigmoid", r"\sigma\left(%s\right)", nonnegative=True)

# How a protected or compound primitive is written for a reader; the others as they are declared.
_READING: dict[str, Callable[..., sympy.Expr]] = {
    "div": lambda x, y: x / y if y != 0 else sympy.Integer(0),
    "log": lambda x: sympy.log(sympy.Abs(x)),
    "sigmoid": sigmoid,
    "pow": lambda x, exponent: sympy.Abs(x) ** exponent,
    "minmax": minmax,
    "zscore": zscore,
    "pz_zsn": zscore,
    "pz_div": lambda x, y: x / sym.norm(y),
}


def closed_form(formula: Formula) -> sympy.Expr:
    """The formula as a reader would write it, protections left out."""

    def visit(node: Any, arguments: list[sympy.Expr]) -> sympy.Expr:
        if not node.arity:
            if isinstance(node.value, float):
                return _number(node.value)
            return formula.language.terminals[node.value].symbol
        entry = formula.language.primitives[node.name]
        known = folded_number(entry, arguments)
        if known is not None:
            return _number(float(known))
        counted = _counted(entry, arguments[0])
        if counted is not None:
            return counted
        form = _READING.get(word(node.name)) or entry.symbolic
        return form(*arguments)

    return fold(formula.tree, visit)


def _counted(entry: Primitive | UnitPrimitive, value: sympy.Expr) -> sympy.Expr | None:
    """A reduction of one number throughout, by the number of features: `rowsum(1)`."""
    if not isinstance(entry, Primitive) or entry.lowering.apply is not None:
        return None
    return sym.repeated(entry.lowering.reductions[0], value)


def _number(value: float) -> sympy.Expr:
    """A constant to three digits."""
    return sympy.Float(value, 3) if value % 1 else sympy.Integer(int(value))


_RENDERERS: dict[str, Callable[[Formula], str]] = {
    "text": lambda formula: formula.text,
    "unicode": lambda formula: str(sympy.pretty(closed_form(formula), use_unicode=True)),
    "line": lambda formula: one_line(formula),
    "latex": lambda formula: str(sympy.latex(closed_form(formula))),
    "mathml": lambda formula: _mathml(closed_form(formula)),
    "python": python_source,
}

FORMATS = tuple(_RENDERERS)


def _mathml(form: sympy.Expr) -> str:
    """A `math` element, which browsers typeset without a script."""
    body = mathml(form, printer="presentation")
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML">{unescape(body, _ENTITIES)}</math>'


# Of HTML, which XML does not know.
_ENTITIES = {
    "&InvisibleTimes;": "\N{INVISIBLE TIMES}",
    "&ApplyFunction;": "\N{FUNCTION APPLICATION}",
}


def render(formula: Formula, format: str = "unicode") -> str:
    """The formula in one of `FORMATS`.

    Raises:
        UsageError: unknown format.
    """
    if format not in _RENDERERS:
        raise UsageError(f"unknown format {format!r}; there are {', '.join(FORMATS)}")
    return _RENDERERS[format](formula)


# One-line notation: template and how tightly it binds (3 atom, 2 product, 1 sum).
_LINE: dict[str, tuple[str, int]] = {
    "add": ("{0} + {1}", 1),
    "sub": ("{0} - {1}", 1),
    "mul": ("{0}·{1}", 2),
    "div": ("{0}/{1}", 2),
    "neg": ("-{0}", 1),
    "abs": ("|{0}|", 3),
    "sqr": ("{0}²", 3),
    "sqrt": ("√{0}", 3),
    "pow": ("|{0}|^{1}", 3),
}
# The least binding of an argument that needs no parentheses, by argument.
_NEEDS = {
    "add": (1, 1),
    "sub": (1, 2),
    "mul": (2, 2),
    "div": (2, 3),
    "neg": (2,),
    "sqr": (4,),
    "sqrt": (4,),
}


def one_line(formula: Formula) -> str:
    """The closed form on one line, for tables: `|W|·X`."""
    return fold(formula.tree, _line)[0]


def _line(node: Any, arguments: list[tuple[str, int]]) -> tuple[str, int]:
    if not node.arity:
        if isinstance(node.value, float):
            return f"{node.value:.4g}", 4 if node.value >= 0 else 1
        return str(node.value), 4
    counted = _counted_line(node.name, *arguments[0])
    return counted if counted is not None else _called(word(node.name), arguments)


def _called(name: str, arguments: list[tuple[str, int]]) -> tuple[str, int]:
    if name not in _LINE:
        return f"{name}({', '.join(text for text, _ in arguments)})", 4
    template, binds = _LINE[name]
    needs = _NEEDS.get(name, (0, 0))
    parts = [
        text if tight >= need else f"({text})"
        for (text, tight), need in zip(arguments, needs, strict=False)
    ]
    if name == "mul" and parts[1].startswith("1/"):  # c/x, not c·1/x
        return f"{parts[0]}{parts[1][1:]}", binds
    return template.format(*parts), 4 if name == "abs" else binds


def _counted_line(name: str, text: str, tight: int) -> tuple[str, int] | None:
    """As `_counted`, where the argument is a number as it is printed here."""
    entry = PRIMITIVES.get(name)
    if entry is None or entry.lowering.apply is not None or not _NUMBER.fullmatch(text):
        return None
    (reduction,) = entry.lowering.reductions
    counts = [(f"{axis}_features", 4) for axis in sorted(reduction.axes)]
    count = counts[0] if len(counts) == 1 else _called("mul", counts)
    match reduction.kind:
        case "mean":
            return text, tight
        case "norm":
            count, text, tight = _called("sqrt", [count]), text.removeprefix("-"), 4
        case "sum":
            pass
        case _:
            return None
    return count if text == "1" else _called("mul", [(text, tight), count])


_NUMBER = re.compile(r"-?[\d.]+(e[-+]\d+)?")
