"""The primitives of allocations.

An allocation is read from the inside out: element-wise primitives (those of metrics, on the
scores `S` too) are reduced to one number a unit, the numbers are transformed, and what says how
much sparser one unit is than another, a `Profile`, comes of `spread`, `threshold`, `sparse_as` or
`dense_as`. The same word serves for weights and units (`add`, `log`): which is meant follows from
the type that its place takes. A unit primitive's `name` carries a prefix to tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch.nn.functional import softplus

from gpprune.primitives.types import Constant, Elements, Joint, Profile, Units, ValueType
from gpprune.primitives.units import functions as units
from gpprune.primitives.units import reductions
from gpprune.primitives.units.dsa import DSA
from gpprune.primitives.units.functions import OnMatrix, OnUnits, OnValues
from gpprune.primitives.units.primitive import UnitPrimitive
from gpprune.primitives.units.profiles import PROFILES
from gpprune.primitives.vocabulary import Vocabulary
from gpprune.primitives.weights import symbolic as sym
from gpprune.primitives.weights.table import PRIMITIVES


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
    **facts: Any,
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
        like=name,
    )


def _values(
    name: str, about: str, reduce: Callable[..., float], *, number: bool = False, **facts: Any
) -> UnitPrimitive:
    """`Elements` to `Units` by all the values of a unit."""
    types: tuple[ValueType, ...] = (Elements, Constant) if number else (Elements,)
    return UnitPrimitive(
        f"units.{name}", about, types, Units, sym.named(name), OnValues(reduce), **facts
    )


def _matrix(name: str, about: str, reduce: Callable[..., float], **facts: Any) -> UnitPrimitive:
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


_ARITHMETIC = ["add", "sub", "mul", "div", "neg", "abs", "max", "min"]
_SMOOTH = ["sqr", "sqrt", "log", "exp", "tanh", "sigmoid", "pow"]

_UNITS = (
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
        like="minmax",
    ),
    _unit(
        "zscore",
        "x less its mean over the units, in (population) standard deviations",
        units.zscore,
        like="zscore",
    ),
    _unit("rank", "rank among the units, scaled to [0, 1]", units.rank, nonnegative=True),
    _unit("cumsum", "running sum over the units", units.cumsum, model=True, uneven=True),
    _unit(
        "smooth",
        "mean with the same unit of the blocks before and after",
        units.smooth,
        model=True,
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
)

UNIT_PRIMITIVES: Vocabulary[UnitPrimitive] = Vocabulary("primitive", *_UNITS, *PROFILES, *DSA)

PAIRINGS: Vocabulary[UnitPrimitive] = Vocabulary(
    "primitive",
    UnitPrimitive(
        "joint",
        "prune by the metric x as the allocation y says; S in y is x",
        (Elements, Profile),
        Joint,
        sympy.Tuple,
        None,
    ),
)
"""What makes one formula of a metric and an allocation."""
