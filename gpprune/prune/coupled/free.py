"""Choose which rows and columns of each matrix go, free of one another.

LLM Surgeon's structured pruning (van der Ouderaa et al. 2024, arXiv 2312.17244): rows and columns
of all matrices compete by their costs. What goes is not coupled across matrices, so that little of
it can be taken out of the model; for that take units (`gpprune.prune.coupled.units`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.primitives.transposed import transposed
from gpprune.prune.allocate.budget import HIGHEST, total_zeros
from gpprune.prune.coupled.gone import Statistics, check_reached, costs_along
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.masks import check_scores
from gpprune.prune.select.scores import layer_scores
from gpprune.prune.update.gone import Gone


def sides_to_go(
    model: nn.Module,
    recipe: Recipe,
    statistics: Statistics,
    *,
    part: float = 1.0,
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, Gone]:
    """Which rows and columns go, the cheapest first, as long as they fit into the number.

    A column costs what the metric says of its input, or the sum of the scores of its weights. A row
    costs the same by the metric with inputs and outputs exchanged.

    Args:
        model: as it is measured.
        recipe: with the pattern of free rows and columns.
        statistics: by layer name, what the metric and its counterpart read.
        part: the share of the recipe's sparsity to give, in ``(0, 1]``.
        held: of layers by name, bool ``[out, in]``: what went before, which stays out.

    Returns:
        By the name of each linear layer, what of it goes.

    Raises:
        Unfit: the metric gives NaN.
        GppruneError: rows and columns are not enough.
    """
    layers = linear_layers(model)
    sides = [_Side(layer, held.get(name) if held else None) for name, layer in layers.items()]
    formulas = recipe.formula, transposed(recipe.formula)
    device = sides[0].layer.weight.device
    scores = [kernel(each.canonical(None), device=device) for each in formulas]
    order = []
    for at, side in enumerate(sides):
        for dim, score in ((1, scores[0]), (0, scores[1])):
            found = layer_scores(score, side.layer.weight, statistics.get(side.layer.name))
            check_scores(found)
            costs = costs_along(dim, found, recipe.formula).tolist()
            order += [(cost, at, dim, place) for place, cost in enumerate(costs)]
    size = sum(layer.size for layer in layers.values())
    target = total_zeros(recipe.sparsity * part, size)
    left = target - sum(side.zeros for side in sides)
    for _, at, dim, place in sorted(order):
        left -= sides[at].take(dim, place, left, recipe.cap)
    longest = max(max(side.layer.weight.shape) for side in sides)
    check_reached(recipe, target - left, target, size, longest)
    return {side.layer.name: side.gone for side in sides}


class _Side:
    """Rows and columns of a layer as they go."""

    def __init__(self, layer: LinearLayer, held: Tensor | None) -> None:
        self.layer = layer
        shape = layer.weight.shape
        self.size = shape[0] * shape[1]
        self.taken = [
            [False] * shape[dim] if held is None else held.all(1 - dim).tolist() for dim in (0, 1)
        ]
        self.counts = [sum(taken) for taken in self.taken]
        self.before = self.zeros

    @property
    def zeros(self) -> int:
        """How many weights are gone."""
        rows, columns = self.counts
        return self.size - (len(self.taken[0]) - rows) * (len(self.taken[1]) - columns)

    def take(self, dim: int, place: int, left: int, cap: float) -> int:
        """Take a row (0) or column (1) if so many weights are left to go; how many went."""
        if self.taken[dim][place]:
            return 0
        more = len(self.taken[1 - dim]) - self.counts[1 - dim]
        most = min(self.before + math.floor(cap * self.size), math.floor(HIGHEST * self.size))
        if more > left or self.zeros + more > most:
            return 0
        self.taken[dim][place] = True
        self.counts[dim] += 1
        return more

    @property
    def gone(self) -> Gone:
        """What goes, which other layers still read."""
        outputs, inputs = (torch.tensor(t, device=self.layer.weight.device) for t in self.taken)
        return Gone(outputs, inputs, unread=False)
