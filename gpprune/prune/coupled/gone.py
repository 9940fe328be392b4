"""What whole rows and columns cost, and whether enough of them go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gpprune.errors import GppruneError
from gpprune.primitives import Formula
from gpprune.primitives.transposed import of_inputs
from gpprune.prune.recipe import Recipe

Statistics = Mapping[str, Mapping[str, Tensor]]  # by layer name


def holds(statistics: Statistics, layers: Iterable[str], names: frozenset[str]) -> bool:
    """Whether statistics of all layers are there by these names."""
    return all(name in statistics and statistics[name].keys() >= names for name in layers)


def check_reached(recipe: Recipe, zeros: int, target: int, size: int, largest: int) -> None:
    """See that a shot takes what it is to take, but for less than one unit.

    Args:
        recipe: whose units go.
        zeros: how many weights go.
        target: how many are to go.
        size: how many there are.
        largest: how many go with the largest unit.

    Raises:
        GppruneError: it does not.
    """
    if zeros + largest < target:
        raise GppruneError(
            f"units of the pattern {recipe.pattern!r} can give {zeros:,} of {size:,} weights in "
            f"this shot, which is to reach {target:,}: take more kinds of units, less sparsity, or "
            "a greater cap"
        )


def costs_along(dim: int, scores: Tensor, metric: Formula) -> Tensor:
    """What each row (0) or column (1) of a layer costs, float64 on the CPU.

    Args:
        dim: along which.
        scores: ``[out, in]``; of rows by the metric with inputs and outputs exchanged.
        metric: says one value of each input, which is the cost; or scores weights, which add up.
    """
    if of_inputs(metric):
        return scores.select(1 - dim, 0).double().cpu()
    return scores.sum(1 - dim, dtype=torch.float64).cpu()
