"""The budget: from a profile to the exact number of zeros of every layer.

The sparsity of a unit is the target plus its centred profile, clipped to [0, highest] and shifted
as a whole until the mean, weighted by parameters, is the target. Rounding to whole weights then
gives the layers with the greatest remainders one zero more, so that the zeros of the model are
exactly `round(target * weights)`.
"""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal

import torch
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.prune.select.pattern import check_sparsity

# No layer is pruned further than this unless the target is: one without weights is another model.
HIGHEST = 0.99


def total_zeros(target: float, weights: int) -> int:
    """`round(target * weights)`, of the decimal number that the target was written as."""
    return int((Decimal(repr(float(target))) * weights).to_integral_value(ROUND_HALF_EVEN))


def project(profile: Tensor, sizes: Tensor, target: float, highest: float | None = None) -> Tensor:
    """The sparsities nearest to `target + profile` that meet the target.

    Args:
        profile: `[units]`; NaN counts as 0, and infinities are as good as any large number.
        sizes: `[units]`, how many weights each unit has.
        target: the share of all weights to prune, in [0, 1).
        highest: the greatest sparsity of a unit; by default `HIGHEST`, or the target if greater.

    Returns:
        `[units]`, float64, in [0, highest]; their mean weighted by `sizes` is the target.

    Raises:
        UsageError: the target lies outside [0, 1) or above `highest`, a size is not positive.
    """
    check_sparsity(target)
    top = max(HIGHEST, target) if highest is None else highest
    if target > top:
        raise UsageError(f"the target {target} is above the highest sparsity of a layer, {top}")
    weights = sizes.double()
    if not (weights > 0).all():
        raise UsageError(f"a unit has {int(weights.min())} weights: leave it out")
    wanted = _near(torch.nan_to_num(profile.double(), nan=0.0))
    # the mean is a piecewise linear, increasing function of the shift, so its root lies on the
    # one piece between neighbouring corners where it crosses the target
    corners = torch.cat([-wanted, top - wanted]).sort().values
    budget = target * float(weights.sum())
    low, high = 0, len(corners) - 1
    while high - low > 1:
        middle = (low + high) // 2
        spent = float(((wanted + corners[middle]).clamp(0, top) * weights).sum())
        low, high = (middle, high) if spent <= budget else (low, middle)
    ends = [float(((wanted + c).clamp(0, top) * weights).sum()) for c in corners[[low, high]]]
    part = (budget - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.0
    shift = corners[low] + (corners[high] - corners[low]) * part
    return (wanted + shift).clamp(0, top)


def _near(profile: Tensor) -> Tensor:
    """The profile from 0 up, with gaps of at most 1.

    Sparsities that far apart are clipped however much further they are, and small numbers keep
    the digits that a large one would round away.
    """
    order = profile.argsort(stable=True)
    near = torch.zeros_like(profile)
    near[order[1:]] = profile[order].diff().clamp(max=1).cumsum(0)
    return near


def zero_counts(sparsities: Tensor, sizes: Tensor, target: float, grain: Tensor) -> Tensor:
    """Whole zeros of each layer that add up to the target.

    Args:
        sparsities: `[layers]`, as `project` gives them.
        sizes: `[layers]`, int64: how many weights each layer has.
        target: the share of all weights to prune.
        grain: `[layers]`, int64: zeros of a layer come in multiples of this; 1 for any number,
            the number of groups of M for an N:M pattern.

    Returns:
        `[layers]`, int64, in [0, size]. Their sum is `round(target * weights)` wherever grains
        of 1 are left to fill up; with coarser ones it is the greatest below that greedy filling
        by greatest remainder reaches.
    """
    steps = sizes // grain
    wanted = sparsities.double() * sizes / grain
    # what rounding left a hair below a whole number is that number
    whole = torch.floor(wanted + 1e-9 * steps.clamp(min=1)).long().clamp(max=steps)
    left = total_zeros(target, int(sizes.sum())) - int((whole * grain).sum())
    remainder = wanted - whole
    if left < 0:  # the hair was one too many
        for place in remainder.argsort(stable=True).tolist():
            if left >= 0:
                break
            if whole[place] > 0:
                whole[place] -= 1
                left += int(grain[place])
    while left > 0:
        room = (whole < steps) & (grain <= left)
        if not room.any():
            break
        # where all can have some, as many each; in the end one each, as far as it goes
        each = max(1, left // int(grain[room].sum()))
        # layers that the budget would leave alone (remainder below 0) come last
        order = torch.where(room, remainder, -math.inf).argsort(descending=True, stable=True)
        for place in order[: int(room.sum())].tolist():
            taken = min(each, int(steps[place] - whole[place]), left // int(grain[place]))
            whole[place] += taken
            remainder[place] -= taken
            left -= taken * int(grain[place])
    counts: Tensor = whole * grain
    if int(grain.max()) == 1 and left:
        raise GppruneError(f"the budget is missed by {left} weights: this is a defect")
    return counts
