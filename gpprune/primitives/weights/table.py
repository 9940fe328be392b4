"""The primitives, each declared once: name, types, sympy meaning, torch lowering, facts.

DEAP's set, the parser, the canonical form, the compiler, the printers and the documentation
table are derived from the entries here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch

from gpprune.primitives.types import Constant, Elements, Inputs, Outputs, ValueType
from gpprune.primitives.weights import lowering as lower
from gpprune.primitives.weights import reach as far
from gpprune.primitives.weights import symbolic as sym
from gpprune.primitives.weights.lowering import Lowering, Reduction
from gpprune.primitives.weights.reach import Reach

UNARY: tuple[ValueType, ...] = (Elements,)
BINARY: tuple[ValueType, ...] = (Elements, Elements)


@dataclass(frozen=True)
class Primitive:
    """One operator of the formula language.

    The facts are what the canonical form may use. For a unary `f`: `increasing`, strictly, as a
    function of its argument (for ranking; saturation aside); `even`, f(x) = f(|x|), and then
    `increasing` is meant in |x|; `odd`, f(-x) = -f(x); `scale_free`, f(a x + b) = f(x) for a > 0;
    `homogeneous`, f(a x) = |a| f(x); `linear`, f(a x) = a f(x). For a binary one: `commutative`
    and `idempotent`, f(x, x) = x. `reach` is how large and small its results get, of its arguments'
    reaches, before they saturate. `searched` is false for what only formula text may use.
    """

    name: str
    about: str
    arguments: tuple[ValueType, ...]
    result: ValueType
    symbolic: Callable[..., sympy.Expr]
    lowering: Lowering
    reach: Callable[..., Reach]
    nonnegative: bool = False
    positive: bool = False
    commutative: bool = False
    idempotent: bool = False
    increasing: bool = False
    even: bool = False
    odd: bool = False
    scale_free: bool = False
    homogeneous: bool = False
    linear: bool = False
    searched: bool = True

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return len(self.arguments)


def _reduction(
    name: str, about: str, kind: str, axis: str, symbolic: type[sym.Reduced]
) -> Primitive:
    norm = kind == "norm"
    return Primitive(
        name,
        about,
        UNARY,
        Outputs if axis == "in" else Inputs,
        symbolic,
        Lowering(None, (Reduction(kind, axis),)),
        {"sum": far.summed, "mean": far.mean, "norm": far.norm}[kind],
        nonnegative=norm,
        homogeneous=norm,
        linear=not norm,
    )


_DECLARED = (
    Primitive(
        "add",
        "x + y",
        BINARY,
        Elements,
        lambda x, y: x + y,
        Lowering(lower.add, scalar="saturate(a + b)"),
        far.add,
        commutative=True,
    ),
    Primitive(
        "sub",
        "x - y",
        BINARY,
        Elements,
        lambda x, y: x - y,
        Lowering(lower.sub, scalar="saturate(a - b)"),
        far.sub,
    ),
    Primitive(
        "mul",
        "x * y",
        BINARY,
        Elements,
        lambda x, y: x * y,
        Lowering(lower.mul, scalar="saturate(a * b)"),
        far.mul,
        commutative=True,
    ),
    Primitive(
        "div",
        "x / y, 0 where y is 0",
        BINARY,
        Elements,
        sym.quotient,
        Lowering(lower.div, scalar="quotient(a, b)"),
        far.div,
    ),
    Primitive(
        "neg", "-x", UNARY, Elements, lambda x: -x, Lowering(torch.neg, scalar="-a"), far.same
    ),
    Primitive(
        "abs",
        "|x|",
        UNARY,
        Elements,
        sympy.Abs,
        Lowering(torch.abs, scalar="fabs(a)"),
        far.same,
        nonnegative=True,
        even=True,
    ),
    Primitive(
        "sqr",
        "x squared",
        UNARY,
        Elements,
        lambda x: x**2,
        Lowering(lower.sqr, scalar="saturate(a * a)"),
        far.sqr,
        nonnegative=True,
        even=True,
        increasing=True,
    ),
    Primitive(
        "sqrt",
        "square root of |x|",
        UNARY,
        Elements,
        lambda x: sympy.sqrt(sympy.Abs(x)),
        Lowering(lower.sqrt, scalar="sqrt(fabs(a))"),
        far.sqrt,
        nonnegative=True,
        even=True,
        increasing=True,
    ),
    Primitive(
        "log",
        "natural logarithm of |x|, at least of 2^-126",
        UNARY,
        Elements,
        lambda x: sympy.log(sympy.Max(sympy.Abs(x), sym.TINY)),
        Lowering(lower.log, scalar="logf(max(fabs(a), TINY))"),
        far.log,
        even=True,
        increasing=True,
    ),
    Primitive(
        "exp",
        "e to the x",
        UNARY,
        Elements,
        sympy.exp,
        Lowering(lower.exp, scalar="saturate(expf(a))"),
        far.exp,
        positive=True,
        increasing=True,
    ),
    Primitive(
        "tanh",
        "hyperbolic tangent",
        UNARY,
        Elements,
        sympy.tanh,
        Lowering(torch.tanh, scalar="tanhf(a)"),
        far.tanh,
        odd=True,
        increasing=True,
    ),
    Primitive(
        "sigmoid",
        "1 / (1 + e^-x)",
        UNARY,
        Elements,
        lambda x: 1 / (1 + sympy.exp(-x)),
        Lowering(torch.sigmoid, scalar="1 / (1 + expf(-a))"),
        far.sigmoid,
        positive=True,
        increasing=True,
    ),
    Primitive(
        "pow",
        "|x| to a constant power, 0 where x is 0 and the power negative",
        (Elements, Constant),
        Elements,
        sym.power,
        Lowering(lower.power, scalar="power(a, b)"),
        far.power,
        nonnegative=True,
    ),
    Primitive(
        "max",
        "the greater of x and y",
        BINARY,
        Elements,
        sympy.Max,
        Lowering(torch.maximum, scalar="max(a, b)"),
        far.extremum,
        commutative=True,
        idempotent=True,
    ),
    Primitive(
        "min",
        "the lesser of x and y",
        BINARY,
        Elements,
        sympy.Min,
        Lowering(torch.minimum, scalar="min(a, b)"),
        far.extremum,
        commutative=True,
        idempotent=True,
    ),
    Primitive(
        "minmax",
        "x shifted and scaled to [0, 1] over the layer, 0 where x is constant",
        UNARY,
        Elements,
        lambda x: sym.quotient(x - sym.low(x), sym.high(x) - sym.low(x)),
        Lowering(
            lower.minmax,
            (Reduction("min", "all"), Reduction("max", "all")),
            scalar="quotient(saturate(a - b), saturate(c - b))",
        ),
        far.minmax,
        nonnegative=True,
        scale_free=True,
        increasing=True,
    ),
    Primitive(
        "zscore",
        "x less its mean over the layer, in (population) standard deviations",
        UNARY,
        Elements,
        lambda x: sym.quotient(x - sym.mean(x), sym.std(x)),
        Lowering(
            lower.zscore,
            (Reduction("mean", "all"), Reduction("std", "all")),
            scalar="quotient(saturate(a - b), c)",
        ),
        far.zscore,
        odd=True,
        scale_free=True,
        increasing=True,
    ),
    _reduction("rowsum", "sum over input features, one an output neuron", "sum", "in", sym.rowsum),
    _reduction("colsum", "sum over output neurons, one an input feature", "sum", "out", sym.colsum),
    _reduction("rowmean", "mean over input features", "mean", "in", sym.rowmean),
    _reduction("colmean", "mean over output neurons", "mean", "out", sym.colmean),
    _reduction("rownorm", "L2 norm over input features", "norm", "in", sym.rownorm),
    _reduction("colnorm", "L2 norm over output neurons", "norm", "out", sym.colnorm),
    # Pruner-Zero's operators as its code computes them (arXiv 2406.02924, lib/gptree.py). Its
    # add, sub, mul, sqr, pow (also a square), neg, abs, tanh, sqrt and mms are ones above.
    Primitive(
        "pz_div",
        "Pruner-Zero: x / Frobenius norm of y",
        BINARY,
        Elements,
        lambda x, y: sym.quotient(x, sym.norm(y)),
        Lowering(
            lower.div,
            (Reduction("norm", "all", 1, "arguments"),),
            scalar="quotient(a, c)",
        ),
        far.over_norm,
        searched=False,
    ),
    Primitive(
        "pz_log",
        "Pruner-Zero: log(|x| + 0.001)",
        UNARY,
        Elements,
        lambda x: sympy.log(sympy.Abs(x) + sympy.Rational(1, 1000)),
        Lowering(lower.pz_log, scalar="logf(fabs(a) + 0.001f)"),
        far.log,
        even=True,
        increasing=True,
        searched=False,
    ),
    Primitive(
        "pz_exp",
        "Pruner-Zero: e to the min(x, 100)",
        UNARY,
        Elements,
        lambda x: sympy.exp(sympy.Min(x, 100)),
        Lowering(lower.pz_exp, scalar="saturate(expf(min(a, 100.0f)))"),
        far.exp,
        positive=True,
        searched=False,
    ),
    Primitive(
        "pz_zsn",
        "Pruner-Zero: z-score over the layer, unbiased standard deviation",
        UNARY,
        Elements,
        lambda x: sym.quotient(x - sym.mean(x), sym.std1(x)),
        Lowering(
            lower.zscore,
            (Reduction("mean", "all"), Reduction("std1", "all", 0, "arguments")),
            scalar="quotient(saturate(a - b), c)",
        ),
        far.zscore,
        odd=True,
        scale_free=True,
        increasing=True,
        searched=False,
    ),
    Primitive(
        "pz_half",
        "Pruner-Zero: 100 x rounded to float16, as its gradients are stored",
        UNARY,
        Elements,
        lambda x: sym.half(100 * x),
        Lowering(lower.pz_half, scalar="half(100 * a)"),
        far.half,
        searched=False,
    ),
)

PRIMITIVES: dict[str, Primitive] = {entry.name: entry for entry in _DECLARED}

if len(PRIMITIVES) != len(_DECLARED):
    raise RuntimeError("two primitives share a name")
if any((entry.lowering.apply is None) == bool(entry.lowering.reads) for entry in _DECLARED):
    raise RuntimeError("a primitive that is more than a reduction needs a scalar expression")

TERMINALS: dict[str, tuple[ValueType, str]] = {
    "W": (Elements, "the weights, signed, [out_features, in_features]"),
    "X": (Inputs, "L2 norm of each input feature over calibration tokens / sqrt(samples)"),
    "Y": (Outputs, "L2 norm of each output neuron over calibration tokens / sqrt(samples)"),
    "G": (Elements, "L2 norm over calibration samples of each weight's loss gradient"),
    "D": (Inputs, "diagonal of the Cholesky factor of the inverse damped Hessian, as SparseGPT's"),
}

if not TERMINALS.keys() <= far.TERMINALS.keys():
    raise RuntimeError("a terminal has no reach")

UNSEARCHED: frozenset[str] = frozenset({"D"})
"""Terminals that formula text may use and a search does not draw: each costs a measurement."""
