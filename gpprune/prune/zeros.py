"""How many weights of each layer a recipe prunes, where its layers differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError
from gpprune.progress import Progress, silent
from gpprune.prune.allocate.allocator import Allocator
from gpprune.prune.allocate.budget import HIGHEST, total_zeros
from gpprune.prune.allocate.learned import LEARNED
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.across import Bound, zeros_across
from gpprune.prune.select.masks import check_scores
from gpprune.prune.select.patterns import Pattern
from gpprune.prune.select.scores import ScoreKernel, layer_scores
from gpprune.prune.select.staged import Holding


def recipe_kernel(recipe: Recipe, layers: Mapping[str, LinearLayer]) -> ScoreKernel:
    """A recipe's metric, compiled for layers by name."""
    weights = [layer.weight for layer in layers.values()]
    elements = sum(weight.numel() for weight in weights)
    formula = recipe.formula.canonical(recipe.shape.group)
    return kernel(formula, elements=elements, device=weights[0].device)


def recipe_zeros(
    model: nn.Module,
    recipe: Recipe,
    tokens: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    progress: Progress = silent,
    *,
    part: float = 1.0,
    held: Mapping[str, Tensor] | None = None,
) -> dict[str, int]:
    """The number of zeros of every layer by its name, as allocation or pattern have it.

    Args:
        model: dense.
        recipe: how to prune.
        tokens: ``[samples, length]``, int64: what a learned allocation learns on.
        statistics: of the dense model's layers by name, by layer name.
        progress: called as ``progress(label, done, total)``.
        part: the share of the recipe's sparsity to give, in ``(0, 1]``.
        held: of layers by name, bool ``[out, in]``: what went before. A layer has no fewer zeros,
            and at most the recipe's cap more.

    Raises:
        Unfit: the allocation gives a value that is not finite.
        UsageError: a statistic that it reads was not measured.
        GppruneError: the pattern is across the model, and a score is NaN.
    """
    layers = linear_layers(model)
    held = held or {}
    least = [int(held[name].sum()) if name in held else 0 for name in layers]
    most = [
        gone + math.floor(recipe.cap * layer.weight.numel())
        for gone, layer in zip(least, layers.values(), strict=True)
    ]
    target = recipe.sparsity * part
    if recipe.shape.across:
        score = recipe_kernel(recipe, layers)

        def scores(layer: LinearLayer) -> Tensor:
            own = Holding(score, held[layer.name]) if layer.name in held else score
            return layer_scores(own, layer.weight, statistics.get(layer.name))

        counts = zeros_under(layers.values(), scores, target, recipe.shape, most)
        return dict(zip(layers, counts, strict=True))
    allocator = Allocator(layers, statistics, target, recipe.unit)
    if recipe.allocator is None:
        learn = LEARNED.find(recipe.allocation).learn
        learned = learn(model, recipe.formula, tokens, statistics, target, progress)
        zeros = allocator.zeros_near(learned, recipe.shape)
    else:
        zeros = allocator.zeros(recipe.allocator, recipe.formula, recipe.shape)
    grains = [recipe.shape.grain(layer.weight.shape) for layer in layers.values()]
    return dict(zip(layers, clipped(zeros.tolist(), least, most, grains), strict=True))


def clipped(
    zeros: Sequence[int], least: Sequence[int], most: Sequence[int], grains: Sequence[int]
) -> list[int]:
    """The zeros of every layer brought between bounds, with the same sum as far as grains allow.

    Args:
        zeros: of each layer, a multiple of its grain.
        least: of each layer.
        most: of each layer, at least `least`.
        grains: a layer's zeros come in multiples of this.
    """
    found = [
        min(max(count, -(-low // grain) * grain), high // grain * grain)
        for count, low, high, grain in zip(zeros, least, most, grains, strict=True)
    ]
    left = sum(zeros) - sum(found)
    step = 1 if left > 0 else -1
    while left:
        # each layer gives or takes in proportion to its room, at least one grain
        rooms = [
            (high - count if step > 0 else count - low) // grain * grain
            for count, low, high, grain in zip(found, least, most, grains, strict=True)
        ]
        total, before = sum(rooms), left
        for at, (room, grain) in enumerate(zip(rooms, grains, strict=True)):
            share = max(grain, abs(before) * room // max(1, total) // grain * grain)
            moved = min(share, room, abs(left) // grain * grain)
            found[at] += step * moved
            left -= step * moved
        if left == before:
            break
    return found


def zeros_under(
    layers: Iterable[LinearLayer],
    scores: Callable[[LinearLayer], Tensor],
    sparsity: float,
    pattern: Pattern,
    most: Sequence[int] | None = None,
) -> list[int]:
    """The number of zeros of every layer under a pattern across the model: one threshold for all.

    The zeros add up to exactly ``round(sparsity * weights)``. A layer gives up at most `HIGHEST`
    of its weights, or the sparsity if that is more: where the threshold would take more of it, the
    others make up for it. Equal scores go in the order of the layers, then row by row.

    Args:
        layers: in the model's order; asked twice.
        scores: of a layer, ``[out, in]``; called twice for each, so that no two are held at once,
            and the same both times.
        sparsity: the share of all weights to prune.
        pattern: a pattern across the model.
        most: of each layer, how many weights it gives up at most, where that is less.

    Raises:
        GppruneError: naming the layer whose scores are NaN.
    """
    layers = list(layers)
    shapes = [layer.weight.shape for layer in layers]
    highest = max(HIGHEST, sparsity)
    bounds = [
        Bound(math.ceil(highest * shape.numel() / member) * member, member)
        for shape, member in zip(shapes, map(pattern.member, shapes), strict=True)
    ]

    if most is not None:
        bounds = [
            Bound(min(bound.most, limit // bound.member * bound.member), bound.member)
            for bound, limit in zip(bounds, most, strict=True)
        ]
    checked: set[str] = set()

    def competing() -> Iterator[Tensor]:
        for layer in layers:
            found = pattern.arrange(scores(layer))
            if layer.name not in checked:
                try:
                    check_scores(found)
                except GppruneError as error:
                    raise type(error)(f"in {layer.name!r}: {error}") from error
                checked.add(layer.name)
            yield found

    zeros = total_zeros(sparsity, sum(shape.numel() for shape in shapes))
    return zeros_across(competing, zeros, bounds)
