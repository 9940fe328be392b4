"""Pruner-Zero's operators as its code computes them (arXiv 2406.02924, lib/gptree.py).

Its add, sub, mul, sqr, pow (also a square), neg, abs, tanh, sqrt and mms are our own.
"""

from __future__ import annotations

import sympy

from gpprune.primitives.types import Elements
from gpprune.primitives.weights import lowering as lower
from gpprune.primitives.weights import reach as far
from gpprune.primitives.weights import symbolic as sym
from gpprune.primitives.weights.lowering import Lowering, Reduction
from gpprune.primitives.weights.primitive import BINARY, UNARY, Primitive

PRUNER_ZERO = (
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
        over_norm=True,
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
        centred=True,
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
