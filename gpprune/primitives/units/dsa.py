"""DSA's operators as its code computes them; `published/dsa.py` holds their names there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import softplus

from gpprune.primitives.types import Elements, Flat, Units
from gpprune.primitives.units import dsa_ops
from gpprune.primitives.units.functions import OnFlat
from gpprune.primitives.units.primitive import UnitPrimitive
from gpprune.primitives.weights import symbolic as sym


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


DSA = (
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
    _dsa("var", "unbiased variance", dsa_ops.var),
    _dsa("std", "unbiased standard deviation", dsa_ops.std),
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
