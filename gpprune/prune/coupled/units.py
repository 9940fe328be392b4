"""Choose which units of coupled axes go: MLP channels and heads, whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.prune.allocate.budget import HIGHEST, total_zeros
from gpprune.prune.coupled.free import sides_to_go
from gpprune.prune.coupled.gone import Statistics, check_reached, costs_along
from gpprune.prune.model.coupling.axes import Coupling, Couplings
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.masks import check_scores
from gpprune.prune.select.patterns import EXPERTS, FREE
from gpprune.prune.select.scores import layer_scores
from gpprune.prune.update.gone import Gone
from gpprune.prune.zeros import recipe_kernel


@dataclass(frozen=True, eq=False)
class _Units:
    """The units of an axis.

    Attributes:
        axis: the axis.
        costs: float64 ``[units]``.
        held: bool ``[units]``: which went in a shot before.
        size: how many weights of linear layers go with each.
        most: how many may be gone.
    """

    axis: Coupling
    costs: Tensor
    held: Tensor
    size: int
    most: int


def units_to_go(
    model: nn.Module,
    recipe: Recipe,
    statistics: Statistics,
    *,
    part: float = 1.0,
    held: Mapping[str, Tensor] | None = None,
    coupled: Couplings | None = None,
) -> dict[str, Gone]:
    """Which units go, as a recipe's pattern of units and its metric have it.

    A unit costs what the metric says of it as an input, or the sum of the scores of all weights
    that read it. Units of all axes compete by their cost a weight that goes with them, and go as
    long as they fit into the recipe's number.

    Args:
        model: as it is measured.
        recipe: with a pattern that has `Pattern.units`.
        statistics: by layer name, what the metric reads.
        part: the share of the recipe's sparsity to give, in ``(0, 1]``.
        held: of layers by name, bool ``[out, in]``: what went before, which stays out.
        coupled: the model's coupled axes, if they are known.

    Returns:
        By the name of each linear layer, what of it goes.

    Raises:
        UsageError: the pattern is of whole experts, see `prune_experts`.
        Unfit: the metric gives NaN.
        GppruneError: the model has no such units, or they are not enough.
    """
    layers, wanted = linear_layers(model), recipe.shape.units
    if EXPERTS in wanted:
        raise UsageError(
            f"the pattern {EXPERTS!r} takes experts out of the model, and leaves no zeros to "
            "judge: prune by it, with gpprune prune"
        )
    if FREE in wanted:
        return sides_to_go(model, recipe, statistics, part=part, held=held)
    axes = [axis for axis in (coupled or couplings(model)).offered if axis.kind in wanted]
    if not axes:
        raise GppruneError(
            f"the model has no units of the pattern {recipe.pattern!r}: gpprune inspect says why"
        )
    score = recipe_kernel(recipe, layers)
    found = []
    for axis in axes:
        reader, place = layers[axis.name], axis.places[0]
        scores = layer_scores(score, reader.weight, statistics.get(axis.name))
        check_scores(scores)
        gone = None if held is None else held.get(axis.name)
        before = torch.zeros(axis.units, dtype=torch.bool)
        if gone is not None:
            before = gone.all(0).cpu()[place.index].all(1)
        costs = costs_along(1, scores, recipe.formula)[place.index].sum(1)
        room = int(before.sum()) + math.floor(recipe.cap * axis.units)
        most = min(room, math.floor(HIGHEST * axis.units), axis.units - 1)
        found.append(_Units(axis, costs, before, _size(axis, layers), most))
    size = sum(layer.size for layer in layers.values())
    target = total_zeros(recipe.sparsity * part, size)
    chosen = _chosen(found, target)
    zeros = sum(int(gone.sum()) * units.size for gone, units in zip(chosen, found, strict=True))
    check_reached(recipe, zeros, target, size, max(units.size for units in found))
    return _by_layer(
        layers, [(units.axis, gone) for gone, units in zip(chosen, found, strict=True)]
    )


def _chosen(found: list[_Units], target: int) -> list[Tensor]:
    """Of each axis the units that go, bool ``[units]``, with at most so many weights in all."""
    chosen = [units.held.clone() for units in found]
    left = target - sum(int(units.held.sum()) * units.size for units in found)
    order = sorted(
        (float(cost) / units.size, at, unit)
        for at, units in enumerate(found)
        for unit, cost in enumerate(units.costs)
        if not units.held[unit]
    )
    counts = [int(units.held.sum()) for units in found]
    for _, at, unit in order:
        if found[at].size <= left and counts[at] < found[at].most:
            chosen[at][unit] = True
            counts[at] += 1
            left -= found[at].size
    return chosen


def _places(axis: Coupling, layers: Mapping[str, LinearLayer]) -> Iterator[tuple[str, int, Tensor]]:
    """Where an axis lies in linear layers: by name, 0 for outputs or 1 for inputs, and which."""
    for place in axis.places:
        layer = layers.get(place.parameter.removesuffix(".weight"))
        if layer is not None and place.parameter == f"{layer.name}.weight":
            yield layer.name, 1 - place.dim if layer.transposed else place.dim, place.index


def _size(axis: Coupling, layers: Mapping[str, LinearLayer]) -> int:
    return sum(
        index.shape[1] * layers[name].shape[1 - dim] for name, dim, index in _places(axis, layers)
    )


def _by_layer(
    layers: Mapping[str, LinearLayer], units: Iterable[tuple[Coupling, Tensor]]
) -> dict[str, Gone]:
    found = {
        name: Gone(
            layer.weight.new_zeros(layer.out_features, dtype=torch.bool),
            layer.weight.new_zeros(layer.in_features, dtype=torch.bool),
        )
        for name, layer in layers.items()
    }
    for axis, gone in units:
        for name, dim, index in _places(axis, layers):
            side = found[name].inputs if dim else found[name].outputs
            side[index[gone].flatten().to(side.device)] = True
    return found
