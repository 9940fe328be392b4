"""Primitives that reduce rows, columns or the layer, and normalise by that."""

from __future__ import annotations

from gpprune.primitives.types import Elements, Inputs, Outputs
from gpprune.primitives.weights import lowering as lower
from gpprune.primitives.weights import reach as far
from gpprune.primitives.weights import symbolic as sym
from gpprune.primitives.weights.lowering import Lowering, Reduction
from gpprune.primitives.weights.primitive import UNARY, Primitive


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


NORMALISATIONS = (
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
        centred=True,
        increasing=True,
    ),
)

REDUCTIONS = (
    _reduction("rowsum", "sum over input features, one an output neuron", "sum", "in", sym.rowsum),
    _reduction("colsum", "sum over output neurons, one an input feature", "sum", "out", sym.colsum),
    _reduction("rowmean", "mean over input features", "mean", "in", sym.rowmean),
    _reduction("colmean", "mean over output neurons", "mean", "out", sym.colmean),
    _reduction("rownorm", "L2 norm over input features", "norm", "in", sym.rownorm),
    _reduction("colnorm", "L2 norm over output neurons", "norm", "out", sym.colnorm),
)
