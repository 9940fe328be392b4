"""How many weights of each layer a recipe prunes, where its layers differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.allocate.allocator import Allocator
from gpprune.prune.allocate.budget import HIGHEST, total_zeros
from gpprune.prune.allocate.learned import LEARNED
from gpprune.prune.measure.cut_off import is_cut_off
from gpprune.prune.model.coverage import coverage
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.across import Bound, zeros_across
from gpprune.prune.select.masks import check_scores
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.scores import ScoreKernel, layer_scores
from gpprune.prune.select.staged import Holding, Lowest


def recipe_kernel(recipe: Recipe, layers: Mapping[str, LinearLayer]) -> ScoreKernel:
    """A recipe's metric, compiled for layers by name."""
    elements = sum(layer.size for layer in layers.values())
    formula = recipe.formula.canonical(recipe.shape.group)
    return kernel(formula, elements=elements, device=next(iter(layers.values())).weight.device)


def staged_score(
    score: ScoreKernel, statistics: Mapping[str, Tensor], held: Tensor | None
) -> ScoreKernel:
    """A metric as a layer's weights are scored by it in a shot.

    Args:
        score: the metric.
        statistics: of the layer by name, with the `signs` of those that the metric reads.
        held: bool ``[out, in]``, True where a weight went before; None in the first shot.

    Returns:
        The metric itself in the first shot. Later, what went before goes first, and a layer that
        has been cut off from what the metric measures has one score throughout.
    """
    if held is None:
        return score
    if is_cut_off(statistics, score.terminals - {"W"}):
        score = Lowest(score)
    return Holding(score, held)


def share_of_layers(model: nn.Module, recipe: Recipe) -> float:
    """The share of the linear layers that is the recipe's share of all matrices of the blocks.

    What is left alone, as routers are, the layers make up for, where the pattern lets them.

    Raises:
        UsageError: they have fewer weights than are to go.
    """
    found = coverage(model)
    if not found.left or recipe.shape.sparsity is not None or recipe.shape.units:
        return recipe.sparsity
    most = found.pruned_size / found.size
    share = recipe.sparsity / most
    if share >= 1:
        raise UsageError(
            f"a sparsity of {recipe.sparsity:g} is of all matrices of the decoder blocks, and "
            f"{found.sentence}: give less than {math.floor(1000 * most) / 1000:g}"
        )
    return share


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
        GppruneError: the pattern is across the model, and a score is NaN; or the cap leaves less
            room than the zeros need.
    """
    layers = linear_layers(model)
    held = held or {}
    sizes = [layer.size for layer in layers.values()]
    least = [int(held[name].sum()) if name in held else 0 for name in layers]
    capped = [gone + math.floor(recipe.cap * size) for gone, size in zip(least, sizes, strict=True)]
    target = recipe.sparsity * part
    total = total_zeros(target, sum(sizes))
    if recipe.shape.across:
        score = recipe_kernel(recipe, layers)

        def scores(layer: LinearLayer) -> Tensor:
            own = statistics.get(layer.name, {})
            staged = staged_score(score, own, held.get(layer.name))
            return layer_scores(staged, layer.weight, own)

        bounds = bounds_across(layers.values(), target, recipe.shape, capped)
        _check_room(recipe, [bound.most for bound in bounds], total, sum(sizes))
        counts = zeros_under(layers.values(), scores, target, recipe.shape, bounds)
        return dict(zip(layers, counts, strict=True))
    allocator = Allocator(layers, statistics, target, recipe.unit)
    if recipe.allocator is None:
        learn = LEARNED.find(recipe.allocation).learn
        learned = learn(model, recipe.formula, tokens, statistics, target, progress)
        zeros = allocator.zeros_near(learned, recipe.shape).tolist()
    else:
        zeros = allocator.zeros(recipe.allocator, recipe.formula, recipe.shape).tolist()
    grains = [recipe.shape.grain(layer.shape) for layer in layers.values()]
    highest = max(HIGHEST, target)
    # what the allocation itself gives, or went before, may be a little more than the highest
    most = [
        min(limit, size, max(gone, count, math.ceil(highest * size / grain) * grain))
        for gone, count, limit, size, grain in zip(least, zeros, capped, sizes, grains, strict=True)
    ]
    rooms = [high // grain * grain for high, grain in zip(most, grains, strict=True)]
    _check_room(recipe, rooms, sum(zeros), sum(sizes))
    return dict(zip(layers, clipped(zeros, least, most, grains, total), strict=True))


def _check_room(recipe: Recipe, most: Sequence[int], zeros: int, size: int) -> None:
    """See that a shot has room for its zeros where a cap holds layers back.

    Raises:
        GppruneError: it has not, as where some layers are full and the others at the cap.
    """
    room = sum(most)
    if recipe.cap < 1 and room < zeros:
        raise GppruneError(
            f"the cap {recipe.cap:g} leaves room for a share of {room / size:.3g} of all weights "
            f"in this shot, which is to reach {zeros / size:.3g}, as some layers have no more to "
            "give: give a greater cap, or more shots"
        )


def clipped(
    zeros: Sequence[int],
    least: Sequence[int],
    most: Sequence[int],
    grains: Sequence[int],
    total: int,
) -> list[int]:
    """The zeros of every layer brought between bounds, with a sum as near to one as grains allow.

    The sum is above `total` only where `least` is.

    Args:
        zeros: of each layer, a multiple of its grain.
        least: of each layer.
        most: of each layer, at least `least`.
        grains: a layer's zeros come in multiples of this.
        total: of all layers.
    """
    found = [
        min(max(count, -(-low // grain) * grain), high // grain * grain)
        for count, low, high, grain in zip(zeros, least, most, grains, strict=True)
    ]
    surplus = [
        (count - low) // grain * grain
        for count, low, grain in zip(found, least, grains, strict=True)
    ]
    taken = _moved(sum(found) - total, surplus, grains)
    found = [count - less for count, less in zip(found, taken, strict=True)]
    if sum(found) > total:  # by less than any grain that could go
        loose = [at for at, room in enumerate(surplus) if room > taken[at]]
        if loose:
            at = min(loose, key=lambda at: grains[at])
            found[at] -= grains[at]
    spare = [
        (high - count) // grain * grain
        for count, high, grain in zip(found, most, grains, strict=True)
    ]
    given = _moved(total - sum(found), spare, grains)
    return [count + more for count, more in zip(found, given, strict=True)]


def _moved(amount: int, rooms: Sequence[int], grains: Sequence[int]) -> list[int]:
    """An amount shared out to layers, at most its room and whole grains to each.

    Each takes in proportion to its room, at least one grain. What is left is less than any grain
    that still has room.
    """
    moved, before = [0] * len(rooms), 0
    while amount > 0 and amount != before:
        before = amount
        open_ = [room - done for room, done in zip(rooms, moved, strict=True)]
        total = max(1, sum(open_))
        for at, (room, grain) in enumerate(zip(open_, grains, strict=True)):
            share = max(grain, before * room // total // grain * grain)
            own = min(share, room, max(0, amount) // grain * grain)
            moved[at] += own
            amount -= own
    return moved


def zeros_under(
    layers: Iterable[LinearLayer],
    scores: Callable[[LinearLayer], Tensor],
    sparsity: float,
    pattern: Pattern,
    bounds: Sequence[Bound] | None = None,
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
        bounds: of each layer, where they are not those of `bounds_across`.

    Raises:
        GppruneError: naming the layer whose scores are NaN.
    """
    layers = list(layers)
    if bounds is None:
        bounds = bounds_across(layers, sparsity, pattern)
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

    zeros = total_zeros(sparsity, sum(layer.size for layer in layers))
    return zeros_across(competing, zeros, bounds)


def bounds_across(
    layers: Iterable[LinearLayer],
    sparsity: float,
    pattern: Pattern,
    most: Sequence[int] | None = None,
) -> list[Bound]:
    """What each layer gives up at most under a pattern across the model; see `zeros_under`.

    Args:
        layers: in the model's order.
        sparsity: the share of all weights to prune.
        pattern: a pattern across the model.
        most: of each layer, how many weights it gives up at most, where that is less.
    """
    shapes = [layer.shape for layer in layers]
    highest = max(HIGHEST, sparsity)
    bounds = [
        Bound(math.ceil(highest * shape.numel() / member) * member, member)
        for shape, member in zip(shapes, map(pattern.member, shapes), strict=True)
    ]
    if most is None:
        return bounds
    return [
        Bound(min(bound.most, limit // bound.member * bound.member), bound.member)
        for bound, limit in zip(bounds, most, strict=True)
    ]
