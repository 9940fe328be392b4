"""Units: what is known of them, how their primitives are declared, and functions of profiles.

Everything but DSA's own operators is total: finite in, finite out, saturating where float32 does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.primitives.weights.lowering import TINY, div, saturate

Values = NDArray[Any]  # one unit's weights, float32, in one dimension
Matrix = NDArray[Any]  # one layer's, [out_features, in_features]

_ROUNDING = 1e-11  # relative: of constants, which are written with 12 digits, and a sum of them


@dataclass(frozen=True)
class Layout:
    """What is known of the units of a model, apart from their scores.

    Attributes:
        sizes: `[units]`, float64: how many weights each has.
        blocks: `[units]`, int64: the decoder block that each is or lies in.
        roles: `[units]`, int64: equal for the same layer of different blocks.
        target: the share of all weights to prune.
    """

    sizes: Tensor
    blocks: Tensor
    roles: Tensor
    target: float


@dataclass(frozen=True)
class OnUnits:
    """`apply(*arguments)`, each `[units]`; with the layout as one more if `model` is set."""

    apply: Callable[..., Tensor]
    model: bool = False


@dataclass(frozen=True)
class OnValues:
    """A number from all of a unit's values and the constants: `reduce(values, *numbers)`."""

    reduce: Callable[..., float]


@dataclass(frozen=True)
class OnMatrix:
    """A number from each layer's matrix; a block's is the mean over its layers."""

    reduce: Callable[[Matrix], float]


@dataclass(frozen=True)
class OnModel:
    """A number for each unit from the values of all of them: `reduce(values, units)`."""

    reduce: Callable[[Sequence[Values], Layout], Tensor]


@dataclass(frozen=True)
class OnFlat:
    """DSA's operators: torch functions of a float32 vector or number, NaN and infinity and all."""

    apply: Callable[[Tensor], Tensor]


# Profiles to profiles


def asin(x: Tensor) -> Tensor:
    """Arc sine, of what lies in [-1, 1]."""
    return x.clamp(-1, 1).asin()


def acos(x: Tensor) -> Tensor:
    """Arc cosine, of what lies in [-1, 1]."""
    return x.clamp(-1, 1).acos()


def tan(x: Tensor) -> Tensor:
    """Tangent, saturating."""
    return saturate(x.tan())


def softmax(x: Tensor) -> Tensor:
    """Softmax over the units."""
    return torch.softmax(x, 0)


def minmax(x: Tensor) -> Tensor:
    """X shifted and scaled to [0, 1] over the units, 0 where x is constant."""
    low, high = x.min(), x.max()
    if _alike(low, high):
        return torch.zeros_like(x)
    return div(saturate(x - low), saturate(high - low))


def _alike(low: Tensor, high: Tensor) -> bool:
    """Whether all that tells two values apart is rounding, which no scaling may blow up."""
    return float(high - low) <= _ROUNDING * float(torch.maximum(low.abs(), high.abs()))


def zscore(x: Tensor) -> Tensor:
    """X less its mean over the units, in (population) standard deviations."""
    if _alike(x.min(), x.max()):
        return torch.zeros_like(x)
    scale = x.abs().max()
    apart = x / scale - (x / scale).mean()
    return apart / apart.square().mean().sqrt()


def rank(x: Tensor) -> Tensor:
    """Each unit's rank in [0, 1], equal units sharing their mean rank."""
    x = (x / x.abs().max().clamp(min=TINY)).round(decimals=12)  # rounding makes no order
    below = (x[None, :] < x[:, None]).sum(1) + ((x[None, :] == x[:, None]).sum(1) - 1) / 2
    return below.double() / max(1, len(x) - 1)


def cumsum(x: Tensor, units: Layout) -> Tensor:
    """The running sum over the units in the model's order."""
    return saturate(x.cumsum(0))


def smooth(x: Tensor, units: Layout) -> Tensor:
    """The mean with the same unit of the blocks before and after."""
    out = torch.empty_like(x)
    for role in set(units.roles.tolist()):
        places = torch.nonzero(units.roles == role)[:, 0]
        places = places[units.blocks[places].argsort(stable=True)]
        for at in range(len(places)):
            near = places[max(0, at - 1) : at + 2]
            out[places[at]] = x[near].mean()
    return out


def _grouped(x: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    _, place = torch.unique(groups, return_inverse=True)
    count = int(place.max()) + 1
    weights = torch.zeros(count, dtype=torch.float64).index_add_(0, place, sizes)
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, place, x * sizes)
    return (sums / weights)[place]


def over_block(x: Tensor, units: Layout) -> Tensor:
    """The mean over all units of the same decoder block, weighted by their sizes."""
    return _grouped(x, units.blocks, units.sizes)


def over_role(x: Tensor, units: Layout) -> Tensor:
    """The mean over the same unit of every block, weighted by their sizes."""
    return _grouped(x, units.roles, units.sizes)


def spread(x: Tensor, amplitude: Tensor) -> Tensor:
    """X scaled to a range of `amplitude`, upside down if that is negative."""
    return amplitude * minmax(x)


def sparse_as(x: Tensor, units: Layout) -> Tensor:
    """Sparsities proportional to x that meet the target, none above 1; uniform where none can."""
    return _proportional(x, units.sizes, units.target)


def dense_as(x: Tensor, units: Layout) -> Tensor:
    """Sparsities whose densities are proportional to x and meet the target, none above 1."""
    return 1 - _proportional(x, units.sizes, 1 - units.target)


def _proportional(x: Tensor, sizes: Tensor, mean: float) -> Tensor:
    """`min(1, c x)` with the weighted mean asked for; negative x count as 0."""
    # Beside negative x the least above 0 is rounding, and would be given all that is left.
    x = x.where(x > _ROUNDING * -x.min().clamp(max=0), 0)
    x = x / x.max() if x.max() > 0 else torch.ones_like(x)
    budget = mean * float(sizes.sum())
    full = torch.zeros(len(sizes), dtype=torch.bool)
    for _ in range(len(sizes)):
        # those at 1 stay there; the others share what is left
        rest = float((x * sizes)[~full].sum())
        scale = (budget - float(sizes[full].sum())) / rest if rest > 0 else 0.0
        over = ~full & (x * scale > 1)
        if not over.any():
            break
        full |= over
    share = torch.where(full, 1.0, (x * max(scale, 0.0)).clamp(max=1))
    if float((share * sizes).sum()) < budget * (1 - 1e-9):  # too few units are above 0
        lacking = budget - float((share * sizes).sum())
        share = share + (1 - share) * (lacking / float((sizes * (1 - share)).sum()))
    return share
