"""Masks from scores: which weights of a layer go."""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.errors import Unfit, UsageError
from gpprune.prune.select.lowest.selection import has_nan, lowest
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.patterns import parse_pattern


def check_scores(scores: Tensor) -> None:
    """See that scores have an order.

    Raises:
        Unfit: one is NaN.
    """
    if has_nan(scores):
        raise Unfit("the scores hold NaN, so they have no order: change the formula")


def arranged(scores: Tensor, pattern: Pattern) -> Tensor:
    """A layer's scores as they compete, ``[groups, width]``.

    Args:
        scores: ``[out, in]``.
        pattern: which weights compete.

    Raises:
        Unfit: a score is NaN.
        UsageError: the scores are no matrix, or the pattern does not fit them.
    """
    if scores.ndim != 2:
        raise UsageError(f"scores have shape {list(scores.shape)}: a layer's are [out, in]")
    pattern.check_layer("this layer", scores.shape)
    found = pattern.arrange(scores)
    check_scores(found)
    return found


def prune_mask(scores: Tensor, sparsity: float | None, pattern: str | Pattern) -> Tensor:
    """Which weights of a layer go: those with the lowest scores.

    The count is exact. Ties go as in ``torch.sort(stable=True)``: of equal scores, the one with
    the lower input feature (in a layer: the lower row, then feature) is pruned first.

    Args:
        scores: ``[out, in]``, any floating dtype; infinities are fine.
        sparsity: the share to prune, in ``[0, 1)``; None where the pattern implies it.
        pattern: ``"row"``, ``"rows:N"``, ``"layer"``, ``"N:M"`` or a parsed :class:`Pattern`; not
            one across the model, which gives a layer no share of its own.

    Returns:
        A bool tensor ``[out, in]`` on the scores' device, True where a weight is pruned.

    Raises:
        Unfit: a score is NaN.
        UsageError: the pattern or the sparsity is impossible, or does not fit the shape.
    """
    pattern = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    target = pattern.target(sparsity)
    if pattern.across:
        raise UsageError(
            f"the pattern {pattern.text!r} compares all layers of a model, so one alone has no "
            "sparsity: give its number of zeros, or take another pattern, such as layer"
        )
    competing = arranged(scores, pattern)
    chosen = lowest(competing, pattern.count(target, competing.shape[1]))
    return pattern.restore(chosen, scores.shape).contiguous()


def exact_mask(scores: Tensor, zeros: int, pattern: Pattern) -> Tensor:
    """The mask of a layer with a given number of zeros.

    Every comparison group gives up as many of its lowest scores, the first groups one more where
    the number does not divide. Ties go as in :func:`prune_mask`.

    Args:
        scores: ``[out, in]``.
        zeros: how many weights go, between 0 and ``out * in``, a multiple of ``pattern.grain``.
        pattern: which weights compete.

    Returns:
        A bool tensor ``[out, in]``, True where a weight is pruned.

    Raises:
        Unfit: a score is NaN.
        UsageError: the pattern does not fit the shape, or cannot give so many zeros.
    """
    competing = arranged(scores, pattern)
    each, extra = shares(zeros, pattern, scores.shape)
    parts = [lowest(competing[:extra], each + 1), lowest(competing[extra:], each)]
    return pattern.restore(torch.cat(parts), scores.shape).contiguous()


def shares(zeros: int, pattern: Pattern, shape: torch.Size | tuple[int, int]) -> tuple[int, int]:
    """How many scores each group gives up, and how many of the first groups give up one more.

    Args:
        zeros: how many weights of the layer go.
        pattern: which weights compete.
        shape: ``[out, in]`` of the layer.

    Raises:
        UsageError: the pattern cannot give so many zeros.
    """
    if zeros % pattern.grain(shape):
        raise UsageError(
            f"the pattern {pattern.text!r} cannot give a layer of {list(shape)} {zeros} zeros: "
            f"they come in multiples of {pattern.grain(shape)}"
        )
    return divmod(zeros // pattern.member(shape), pattern.groups(shape))
