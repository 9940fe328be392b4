"""Sparsity patterns and the masks they make from scores."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial

import torch
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.prune.select.selection import has_nan, lowest


def check_sparsity(sparsity: float) -> None:
    """See that a sparsity lies in ``[0, 1)``.

    Raises:
        UsageError: it does not, or is not a number.
    """
    if not 0.0 <= sparsity < 1.0:
        raise UsageError(f"the sparsity {sparsity} lies outside [0, 1): give a share such as 0.5")


def pruned_count(sparsity: float, size: int) -> int:
    """``floor(sparsity * size)``, of the decimal number that ``sparsity`` was written as.

    In binary ``0.29 * 100`` is 28.999...; whoever asks for 29 % of 100 weights means 29.
    """
    return math.floor(Decimal(repr(float(sparsity))) * size)


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity: which weights compete, and how many of them go.

    Attributes:
        text: how it is written: ``"row"``, ``"rows:16"``, ``"layer"``, ``"2:4"``.
        group: what holds its comparison groups of scores, ``"row"`` or ``"layer"``. Only their
            order inside it matters, so a formula may be reduced to that order before it is
            compiled.
        choose: from scores ``[out, in]`` without NaN and a sparsity to the mask, bool
            ``[out, in]``, True where a weight goes.
        sparsity: the sparsity that the pattern itself implies, or None.
        multiple: what a layer's number of input features must be a multiple of.
        rows: how many consecutive output neurons compete together, where that is neither one nor
            all; a layer has a multiple of so many.
    """

    text: str
    group: str
    choose: Callable[[Tensor, float], Tensor]
    sparsity: float | None = None
    multiple: int = 1
    rows: int = 0

    def target(self, sparsity: float | None) -> float:
        """The sparsity to prune to, from the one asked for (None: what the pattern implies).

        Raises:
            UsageError: none is given or implied, it lies outside [0, 1), or the two disagree.
        """
        if sparsity is None:
            if self.sparsity is None:
                raise UsageError(f"the pattern {self.text!r} needs a sparsity, such as 0.5")
            return self.sparsity
        check_sparsity(sparsity)
        if self.sparsity is not None and not math.isclose(sparsity, self.sparsity, abs_tol=1e-9):
            raise UsageError(
                f"the pattern {self.text!r} prunes a share of {self.sparsity:g}, not "
                f"{sparsity:g}: leave the sparsity out, or choose another pattern"
            )
        return sparsity

    def groups(self, shape: Sequence[int]) -> int:
        """How many comparison groups a layer of ``[out, in]`` weights has."""
        if self.multiple > 1:
            return shape[0] * shape[1] // self.multiple
        if self.rows:
            return shape[0] // self.rows
        return shape[0] if self.group == "row" else 1

    def grain(self, shape: Sequence[int]) -> int:
        """A layer's zeros come in multiples of this: in N:M every group has as many."""
        return self.groups(shape) if self.multiple > 1 else 1

    def check_layer(self, name: str, shape: Sequence[int]) -> None:
        """See that the pattern fits a layer of ``[out, in]`` weights.

        Raises:
            UsageError: naming the layer that it does not fit.
        """
        neurons, features = shape
        if features % self.multiple:
            raise UsageError(
                f"the pattern {self.text!r} does not fit {name}: its {features} input "
                f"features are not divisible by {self.multiple}"
            )
        if self.rows and neurons % self.rows:
            raise UsageError(
                f"the pattern {self.text!r} does not fit {name}: its {neurons} output neurons "
                f"are not divisible by {self.rows}"
            )


def _lowest_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """The lowest ``floor(sparsity * in)`` of every output row, as Wanda (Sun et al. 2023)."""
    return lowest(scores, pruned_count(sparsity, scores.shape[1]))


def _lowest_of_layer(scores: Tensor, sparsity: float) -> Tensor:
    """The lowest ``floor(sparsity * size)`` of the whole matrix."""
    flat = scores.reshape(1, -1)
    return lowest(flat, pruned_count(sparsity, flat.shape[1])).view(scores.shape)


def _lowest_of_bands(rows: int, scores: Tensor, sparsity: float) -> Tensor:
    """The lowest ``floor(sparsity * rows * in)`` of each ``rows`` consecutive output neurons."""
    flat = scores.reshape(-1, rows * scores.shape[1])
    return lowest(flat, pruned_count(sparsity, flat.shape[1])).view(scores.shape)


def _lowest_of_groups(size: int, pruned: int, scores: Tensor, sparsity: float) -> Tensor:
    """The ``pruned`` lowest of each ``size`` consecutive input features."""
    return lowest(scores.reshape(-1, size), pruned).view(scores.shape)


def _band_pattern(match: re.Match[str]) -> Pattern:
    rows = int(match[1])
    if rows < 1:
        raise UsageError(f"the pattern {match[0]!r} compares no rows: write rows:N with N from 1")
    return Pattern(f"rows:{rows}", "layer", partial(_lowest_of_bands, rows), rows=rows)


def _mixed_pattern(match: re.Match[str]) -> Pattern:
    size = int(match[1])
    if size < 2:
        raise UsageError(f"the pattern {match[0]!r} has groups of {size}: write N:M with M from 2")

    def choose(scores: Tensor, sparsity: float) -> Tensor:
        return _lowest_of_groups(size, pruned_count(sparsity, size), scores, sparsity)

    return Pattern(f"N:{size}", "row", choose, multiple=size)


def _group_pattern(match: re.Match[str]) -> Pattern:
    kept, size = int(match[1]), int(match[2])
    if not 0 < kept <= size:
        raise UsageError(
            f"the pattern {match[0]!r} would keep {kept} of {size}: write N:M with N from 1 to M"
        )
    choose = partial(_lowest_of_groups, size, size - kept)
    return Pattern(f"{kept}:{size}", "row", choose, sparsity=1 - kept / size, multiple=size)


# How a pattern is described and written, and how it is made. A new pattern is a new line.
_FORMS: tuple[tuple[str, str, Callable[[re.Match[str]], Pattern]], ...] = (
    ("row", r"row", lambda match: Pattern("row", "row", _lowest_of_rows)),
    ("rows:N such as rows:16", r"rows:([0-9]{1,6})", _band_pattern),
    ("layer", r"layer", lambda match: Pattern("layer", "layer", _lowest_of_layer)),
    ("N:M such as 2:4", r"([0-9]{1,4}):([0-9]{1,4})", _group_pattern),
    ("N:8 (another N in each layer)", r"N:([0-9]{1,4})", _mixed_pattern),
)


@lru_cache(maxsize=64)
def parse_pattern(text: str) -> Pattern:
    """The pattern written as ``"row"``, ``"rows:N"``, ``"layer"`` or ``"N:M"``.

    Raises:
        UsageError: the text is no pattern.
    """
    for _, form, make in _FORMS:
        if match := re.fullmatch(form, text):
            return make(match)
    known = ", ".join(description for description, _, _ in _FORMS)
    raise UsageError(f"there is no pattern {text!r}: choose from {known}")


def check_scores(scores: Tensor) -> None:
    """See that scores have an order.

    Raises:
        GppruneError: one is NaN.
    """
    if has_nan(scores):
        raise GppruneError("the scores hold NaN, so they have no order: change the formula")


def prune_mask(scores: Tensor, sparsity: float | None, pattern: str | Pattern) -> Tensor:
    """Which weights of a layer go: those with the lowest scores.

    The count is exact. Ties go as in ``torch.sort(stable=True)``: of equal scores, the one with
    the lower input feature (in a layer: the lower row, then feature) is pruned first.

    Args:
        scores: ``[out, in]``, any floating dtype; infinities are fine.
        sparsity: the share to prune, in ``[0, 1)``; None where the pattern implies it.
        pattern: ``"row"``, ``"rows:N"``, ``"layer"``, ``"N:M"`` or a parsed :class:`Pattern`.

    Returns:
        A bool tensor ``[out, in]`` on the scores' device, True where a weight is pruned.

    Raises:
        GppruneError: a score is NaN.
        UsageError: the pattern or the sparsity is impossible, or does not fit the shape.
    """
    shape = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    target = shape.target(sparsity)
    if scores.ndim != 2:
        raise UsageError(f"scores have shape {list(scores.shape)}: a layer's are [out, in]")
    shape.check_layer("this layer", scores.shape)
    check_scores(scores)
    return shape.choose(scores, target)


def exact_mask(scores: Tensor, zeros: int, pattern: Pattern) -> Tensor:
    """The mask of a layer with a given number of zeros.

    Every comparison group gives up ``zeros // groups`` of its lowest scores, the first
    ``zeros % groups`` groups one more. Ties go as in :func:`prune_mask`.

    Args:
        scores: ``[out, in]``.
        zeros: how many weights go, between 0 and ``out * in``.
        pattern: which weights compete; for N:M ``zeros`` is a multiple of ``pattern.grain``.

    Returns:
        A bool tensor ``[out, in]``, True where a weight is pruned.

    Raises:
        GppruneError: a score is NaN.
        UsageError: the pattern does not fit the shape.
    """
    pattern.check_layer("this layer", scores.shape)
    check_scores(scores)
    groups = pattern.groups(scores.shape)
    flat = scores.reshape(groups, -1)
    each, extra = divmod(zeros, groups)
    parts = [lowest(flat[:extra], each + 1), lowest(flat[extra:], each)]
    return torch.cat(parts).view(scores.shape)
