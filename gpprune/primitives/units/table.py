"""The primitives of allocations, each declared once, and the terminals they add to a metric's.

An allocation is read from the inside out: element-wise primitives (those of metrics, on the
scores `S` too) are reduced to one number a unit, the numbers are transformed, and what says how
much sparser one unit is than another, a `Profile`, comes of `spread`, `threshold`, `sparse_as` or
`dense_as`. The same word serves for weights and units (`add`, `log`): which is meant follows from
the type that its place takes. A unit primitive's `name` carries a prefix to tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.nn.functional import softplus

from gpprune.primitives.types import Constant, Elements, Flat, Joint, Profile, Units, ValueType
from gpprune.primitives.units import dsa_ops, reductions
from gpprune.primitives.units import functions as units
from gpprune.primitives.units.functions import OnFlat, OnMatrix, OnModel, OnUnits, OnValues
from gpprune.primitives.weights import lowering as lower
from gpprune.primitives.weights import symbolic as sym
from gpprune.primitives.weights.table import PRIMITIVES, TERMINALS

UnitLowering = OnUnits | OnValues | OnMatrix | OnModel | OnFlat | None


@dataclass(frozen=True)
class UnitPrimitive:
    """An operator of allocations; fields as for a `Primitive`.

    `scale_free`, as there: f(a x + b) = f(x) for a > 0; `factor_free`: f(a x) = f(x) alone.
    `order` marks what depends on the order of units, as `depth` does.
    """

    name: str
    about: str
    arguments: tuple[ValueType, ...]
    result: ValueType
    symbolic: Callable[..., sympy.Expr]
    lowering: UnitLowering
    searched: bool = True
    nonnegative: bool = False
    positive: bool = False
    scale_free: bool = False
    factor_free: bool = False
    order: bool = False

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return len(self.arguments)


def _asin(x: sympy.Expr) -> sympy.Expr:
    return sympy.asin(sympy.Max(-1, sympy.Min(1, x)))


def _acos(x: sympy.Expr) -> sympy.Expr:
    return sympy.acos(sympy.Max(-1, sympy.Min(1, x)))


def _unit(
    name: str,
    about: str,
    apply: Callable[..., Any],
    symbolic: Callable[..., sympy.Expr] | None = None,
    *,
    model: bool = False,
    **facts: bool,
) -> UnitPrimitive:
    """`Units` to `Units`."""
    meaning = symbolic or sym.named(name)
    return UnitPrimitive(
        f"units.{name}", about, (Units,), Units, meaning, OnUnits(apply, model), **facts
    )


def _shared(name: str) -> UnitPrimitive:
    """A metric's primitive that is the same function of one number a unit."""
    entry = PRIMITIVES[name]
    types = tuple(Constant if type_ is Constant else Units for type_ in entry.arguments)
    return UnitPrimitive(
        f"units.{name}",
        entry.about,
        types,
        Units,
        entry.symbolic,
        OnUnits(entry.lowering.apply),  # type: ignore[arg-type]  # none of these is a reduction
        nonnegative=entry.nonnegative,
        positive=entry.positive,
    )


def _values(
    name: str, about: str, reduce: Callable[..., float], *, number: bool = False, **facts: bool
) -> UnitPrimitive:
    """`Elements` to `Units` by all the values of a unit."""
    types: tuple[ValueType, ...] = (Elements, Constant) if number else (Elements,)
    return UnitPrimitive(
        f"units.{name}", about, types, Units, sym.named(name), OnValues(reduce), **facts
    )


def _matrix(name: str, about: str, reduce: Callable[..., float], **facts: bool) -> UnitPrimitive:
    """`Elements` to `Units` by each layer's matrix; too slow to draw at random."""
    return UnitPrimitive(
        f"units.{name}",
        about,
        (Elements,),
        Units,
        sym.named(name),
        OnMatrix(reduce),
        searched=False,
        **facts,
    )


def _profile(
    name: str,
    about: str,
    types: tuple[ValueType, ...],
    symbolic: Callable[..., sympy.Expr],
    lowering: UnitLowering,
    **facts: bool,
) -> UnitPrimitive:
    return UnitPrimitive(f"profile.{name}", about, types, Profile, symbolic, lowering, **facts)


def _dsa(name: str, about: str, apply: Callable[[torch.Tensor], torch.Tensor]) -> UnitPrimitive:
    return UnitPrimitive(
        f"dsa_{name}",
        f"DSA: {about}",
        (Flat,),
        Flat,
        sym.named(f"dsa_{name}"),
        OnFlat(apply),
        searched=False,
    )


_ARITHMETIC = ["add", "sub", "mul", "div", "neg", "abs", "max", "min"]
_SMOOTH = ["sqr", "sqrt", "log", "exp", "tanh", "sigmoid", "pow"]
_PAIR = (Profile, Profile)

_DECLARED = (
    *(_shared(name) for name in _ARITHMETIC + _SMOOTH),
    _unit("sin", "sine", torch.sin, sympy.sin),
    _unit("cos", "cosine", torch.cos, sympy.cos),
    _unit("tan", "tangent", units.tan, sympy.tan),
    _unit("asin", "arc sine of x clipped to [-1, 1]", units.asin, _asin),
    _unit("acos", "arc cosine of x clipped to [-1, 1]", units.acos, _acos),
    _unit("atan", "arc tangent", torch.atan, sympy.atan),
    _unit("softplus", "log(1 + e^x)", softplus, lambda x: sympy.log(1 + sympy.exp(x))),
    _unit("softmax", "e^x over its sum over the units", units.softmax, positive=True),
    _unit(
        "minmax",
        "x shifted and scaled to [0, 1] over the units, 0 where x is constant",
        units.minmax,
        nonnegative=True,
    ),
    _unit(
        "zscore",
        "x less its mean over the units, in (population) standard deviations",
        units.zscore,
    ),
    _unit("rank", "rank among the units, scaled to [0, 1]", units.rank, nonnegative=True),
    _unit("cumsum", "running sum over the units", units.cumsum, model=True, order=True),
    _unit(
        "smooth",
        "mean with the same unit of the blocks before and after",
        units.smooth,
        model=True,
        order=True,
    ),
    _unit("over_block", "mean over the units of a decoder block", units.over_block, model=True),
    _unit("over_role", "mean over the same unit of all blocks", units.over_role, model=True),
    _values("mean", "mean over a unit's weights", reductions.mean),
    _values(
        "var", "(population) variance over a unit's weights", reductions.variance, nonnegative=True
    ),
    _values("std", "(population) standard deviation", reductions.deviation, nonnegative=True),
    _values("l1", "sum of |x| over a unit's weights", reductions.l1, nonnegative=True),
    _values("l2", "Frobenius norm: root of the sum of squares", reductions.l2, nonnegative=True),
    _values("largest", "greatest value in a unit", reductions.largest),
    _values(
        "quantile", "the value below which a share of a unit lies", reductions.quantile, number=True
    ),
    _values(
        "outliers",
        "share of values above so many times their mean (OWL)",
        reductions.outliers,
        number=True,
        nonnegative=True,
        factor_free=True,
    ),
    _values(
        "entropy",
        "entropy of |x| over its sum, in nats",
        reductions.entropy,
        nonnegative=True,
        factor_free=True,
    ),
    _values("geomean", "geometric mean of |x|", reductions.geomean, positive=True),
    _values(
        "kurtosis",
        "fourth moment over the squared variance",
        reductions.kurtosis,
        nonnegative=True,
        factor_free=True,
    ),
    _matrix(
        "gram_rank", "rank of the Gram matrix, in float32", reductions.matrix_rank, nonnegative=True
    ),
    _matrix("logdet", "log-determinant of the Gram matrix", reductions.logdet),
    _matrix(
        "hill", "Hill's exponent of the upper half of the squared singular values", reductions.hill
    ),
    _matrix("hill_peak", "as hill, of the tail from the peak that fits best", reductions.hill_peak),
    _profile(
        "spread",
        "x scaled to so wide a range of sparsities; a negative range turns it over",
        (Units, Constant),
        lambda x, amplitude: amplitude * sym.named("minmax")(x),
        OnUnits(units.spread),
        scale_free=True,
    ),
    _profile(
        "threshold",
        "sparsities under one threshold for all units",
        (Elements,),
        sym.named("threshold"),
        OnModel(reductions.threshold),
        scale_free=True,
    ),
    _profile(
        "sparse_as",
        "sparsities proportional to x that meet the target",
        (Units,),
        sym.named("sparse_as"),
        OnUnits(units.sparse_as, model=True),
        factor_free=True,
    ),
    _profile(
        "dense_as",
        "sparsities with densities proportional to x that meet the target",
        (Units,),
        sym.named("dense_as"),
        OnUnits(units.dense_as, model=True),
        factor_free=True,
    ),
    _profile("add", "x + y", _PAIR, lambda x, y: x + y, OnUnits(lower.add)),
    _profile("sub", "x - y", _PAIR, lambda x, y: x - y, OnUnits(lower.sub)),
    _profile("neg", "-x", (Profile,), lambda x: -x, OnUnits(torch.neg), searched=False),
    _profile("mul", "c * x", (Constant, Profile), lambda c, x: c * x, OnUnits(lower.mul)),
    _profile(
        "max", "the greater of x and y", _PAIR, sympy.Max, OnUnits(torch.maximum), searched=False
    ),
    _profile(
        "min", "the lesser of x and y", _PAIR, sympy.Min, OnUnits(torch.minimum), searched=False
    ),
    _profile(
        "smooth",
        "mean with the same unit of the blocks before and after",
        (Profile,),
        sym.named("smooth"),
        OnUnits(units.smooth, model=True),
        order=True,
    ),
    _profile(
        "over_block",
        "mean over the units of a decoder block",
        (Profile,),
        sym.named("over_block"),
        OnUnits(units.over_block, model=True),
    ),
    _profile(
        "over_role",
        "mean over the same unit of all blocks",
        (Profile,),
        sym.named("over_role"),
        OnUnits(units.over_role, model=True),
    ),
    # DSA's operators as its code computes them; their names there in `dsa.py`.
    UnitPrimitive(
        "dsa_scores",
        "DSA: the scores of a unit's layers in one vector",
        (Elements,),
        Flat,
        lambda x: x,
        None,
        searched=False,
    ),
    UnitPrimitive(
        "dsa_importance",
        "DSA: the mean of what is left, NaN as 0, infinity as -1",
        (Flat,),
        Units,
        sym.named("dsa_importance"),
        None,
        searched=False,
    ),
    _dsa("log", "log(x + 1e-6), of 1 where x is not above 0", dsa_ops.log),
    _dsa("abslog", "log|x|, of 1 where x is 0", dsa_ops.abslog),
    _dsa("normalize", "x less its mean, over its unbiased deviation", dsa_ops.normalize),
    _dsa("mms", "min-max over the unit", dsa_ops.mms),
    _dsa("frobenius", "Frobenius norm", torch.linalg.vector_norm),
    _dsa("l1", "mean of |x|", dsa_ops.l1),
    _dsa("geomean", "the product's root", dsa_ops.geomean),
    _dsa("mean", "mean", torch.mean),
    _dsa("var", "unbiased variance", torch.var),
    _dsa("std", "unbiased standard deviation", torch.std),
    _dsa("entropy", "entropy of x over its sum", dsa_ops.entropy),
    _dsa("abs", "|x|", torch.abs),
    _dsa("pow", "x squared", torch.square),
    _dsa("exp", "e^x", torch.exp),
    _dsa("sigmoid", "1 / (1 + e^-x)", torch.sigmoid),
    _dsa("tanh", "hyperbolic tangent", torch.tanh),
    _dsa("sin", "sine", torch.sin),
    _dsa("cos", "cosine", torch.cos),
    _dsa("tan", "tangent", torch.tan),
    _dsa("asin", "arc sine, NaN outside [-1, 1]", torch.asin),
    _dsa("acos", "arc cosine, NaN outside [-1, 1]", torch.acos),
    _dsa("atan", "arc tangent", torch.atan),
    _dsa("ln", "log x, NaN below 0", torch.log),
    _dsa("softplus", "log(1 + e^x)", softplus),
)

UNIT_PRIMITIVES: dict[str, UnitPrimitive] = {entry.name: entry for entry in _DECLARED}

if len(UNIT_PRIMITIVES) != len(_DECLARED):
    raise RuntimeError("two unit primitives share a name")

JOINT = UnitPrimitive(
    "joint",
    "prune by the metric x as the allocation y says; S in y is x",
    (Elements, Profile),
    Joint,
    sympy.Tuple,
    None,
)

UNIT_TERMINALS: dict[str, tuple[ValueType, str]] = {
    **TERMINALS,
    "S": (Elements, "scores of the metric that is pruned by, [out_features, in_features]"),
    "depth": (Units, "place of a unit's decoder block: 0 the first, 1 the last"),
    "fan_in": (Units, "input features of a unit's layer; of a block, their mean"),
    "fan_out": (Units, "output neurons of a unit's layer; of a block, their mean"),
    "size": (Units, "number of a unit's weights"),
}
