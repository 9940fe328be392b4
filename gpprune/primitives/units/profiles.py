"""Primitives that say how much sparser one unit is than another: they end in a `Profile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch

from gpprune.primitives.types import Constant, Elements, Profile, Units, ValueType
from gpprune.primitives.units import functions as units
from gpprune.primitives.units import reductions
from gpprune.primitives.units.functions import OnModel, OnUnits
from gpprune.primitives.units.primitive import UnitLowering, UnitPrimitive
from gpprune.primitives.weights import lowering as lower
from gpprune.primitives.weights import symbolic as sym

_PAIR = (Profile, Profile)


def _profile(
    name: str,
    about: str,
    types: tuple[ValueType, ...],
    symbolic: Callable[..., sympy.Expr],
    lowering: UnitLowering,
    **facts: Any,
) -> UnitPrimitive:
    return UnitPrimitive(f"profile.{name}", about, types, Profile, symbolic, lowering, **facts)


PROFILES = (
    _profile(
        "spread",
        "x scaled to so wide a range of sparsities; a negative range turns it over",
        (Units, Constant),
        lambda x, amplitude: amplitude * sym.named("minmax")(x),
        OnUnits(units.spread),
        scale_free=True,
        scaled=True,
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
    _profile("add", "x + y", _PAIR, lambda x, y: x + y, OnUnits(lower.add), like="add"),
    _profile("sub", "x - y", _PAIR, lambda x, y: x - y, OnUnits(lower.sub), like="sub"),
    _profile("neg", "-x", (Profile,), lambda x: -x, OnUnits(torch.neg), searched=False, like="neg"),
    _profile(
        "mul", "c * x", (Constant, Profile), lambda c, x: c * x, OnUnits(lower.mul), like="mul"
    ),
    _profile(
        "max",
        "the greater of x and y",
        _PAIR,
        sympy.Max,
        OnUnits(torch.maximum),
        searched=False,
        like="max",
    ),
    _profile(
        "min",
        "the lesser of x and y",
        _PAIR,
        sympy.Min,
        OnUnits(torch.minimum),
        searched=False,
        like="min",
    ),
    _profile(
        "smooth",
        "mean with the same unit of the blocks before and after",
        (Profile,),
        sym.named("smooth"),
        OnUnits(units.smooth, model=True),
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
)
