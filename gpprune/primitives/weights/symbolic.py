"""The sympy meaning of what sympy has no name for: reductions and Pruner-Zero's operators.

Elementwise primitives are written with sympy's own functions. A reduction is an applied
`sympy.Function` whose argument stands for the matrix that is reduced; only its printing is ours.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import sympy

from gpprune.primitives.weights.lowering import Reduction

LARGEST = sympy.Float(3.4028234663852886e38, 17)
TINY = sympy.Float(2.0**-126, 17)


class Reduced(sympy.Function):  # type: ignore[misc]
    """A reduction of a matrix; subclasses say which and print as the textbooks do."""

    is_real = True
    is_number = False  # of numbers too: sympy cannot compare what it cannot evaluate
    template = ""

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        body = self.template % printer._print(self.args[0])
        return body if exp is None else rf"\left({body}\right)^{{{exp}}}"


def reduction(name: str, template: str, *, nonnegative: bool = False) -> type[Reduced]:
    """A `Reduced` subclass called `name`, printed in LaTeX by `template` (one `%s`)."""
    facts: dict[str, Any] = {"template": template}
    if nonnegative:
        facts["is_nonnegative"] = True
    return type(name, (Reduced,), facts)


@cache
def named(name: str) -> type[sympy.Function]:
    """A real function of any number of arguments that prints as its name."""

    class Named(sympy.Function):  # type: ignore[misc]
        is_real = True
        is_number = False

        def _latex(self, printer: Any, exp: str | None = None) -> str:
            arguments = ", ".join(printer._print(argument) for argument in self.args)
            title = name.replace("_", r"\_")
            body = rf"\operatorname{{{title}}}\left({arguments}\right)"
            return body if exp is None else rf"\left({body}\right)^{{{exp}}}"

    Named.__name__ = name
    return Named


rowsum = reduction("rowsum", r"\sum_{j} %s")
colsum = reduction("colsum", r"\sum_{i} %s")
rowmean = reduction("rowmean", r"\operatorname*{mean}_{j} %s")
colmean = reduction("colmean", r"\operatorname*{mean}_{i} %s")
rownorm = reduction("rownorm", r"\left\lVert %s \right\rVert_{2,j}", nonnegative=True)
colnorm = reduction("colnorm", r"\left\lVert %s \right\rVert_{2,i}", nonnegative=True)
low = reduction("min_all", r"\min_{ij} %s")
high = reduction("max_all", r"\max_{ij} %s")
mean = reduction("mean_all", r"\operatorname*{mean}_{ij} %s")
std = reduction("std_all", r"\operatorname*{std}_{ij} %s", nonnegative=True)
std1 = reduction("std1_all", r"\operatorname*{std}_{ij} %s", nonnegative=True)
norm = reduction("norm_all", r"\left\lVert %s \right\rVert_{F}", nonnegative=True)
half = reduction("float16", r"\operatorname{float16}\left(%s\right)")


class Count(sympy.Symbol):  # type: ignore[misc]
    """A number of features: a symbol that LaTeX does not take apart at its underscore."""

    def _latex(self, printer: Any) -> str:
        title = self.name.replace("_", r"\_")
        return rf"\mathrm{{{title}}}"


COUNTS = {axis: Count(f"{axis}_features", positive=True, integer=True) for axis in ("in", "out")}


def repeated(reduction: Reduction, value: sympy.Expr) -> sympy.Expr | None:
    """A sum, mean or norm of one value throughout, in the numbers of features; None of others."""
    count = sympy.Mul(*(COUNTS[axis] for axis in sorted(reduction.axes)))
    if value.free_symbols - set(COUNTS.values()) or value.atoms(sympy.Function):
        return None
    return {
        "sum": count * value,
        "mean": value,
        "norm": sympy.sqrt(count) * sympy.Abs(value),
    }.get(reduction.kind)


class quotient(sympy.Function):  # type: ignore[misc]
    """`x / y`, and 0 where `y` is 0.

    A function of its own, for sympy takes exponential time over nested Piecewise conditions;
    `.rewrite(sympy.Piecewise)` spells it out.
    """

    is_real = True

    @classmethod
    def eval(cls, x: sympy.Expr, y: sympy.Expr) -> sympy.Expr | None:
        """A plain fraction where y is a number."""
        if y == 0:
            return sympy.Integer(0)
        return x / y if y.is_number and y.is_nonzero else None

    def _eval_rewrite_as_Piecewise(self, x: sympy.Expr, y: sympy.Expr, **_: Any) -> sympy.Expr:
        return sympy.Piecewise((0, sympy.Eq(y, 0)), (x / y, True))


def power(x: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """`|x| ** exponent`, and 0 where `x` is 0 and the exponent negative."""
    if exponent.is_negative:
        return quotient(sympy.Integer(1), sympy.Abs(x) ** (-exponent))
    return sympy.Abs(x) ** exponent
