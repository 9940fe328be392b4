"""Which weights of a layer go, for updates that choose as they change the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.compile.program import Reduce, lower
from gpprune.primitives import STATISTICS, Formula, axes_of
from gpprune.prune.select.arrangements import Misfit
from gpprune.prune.select.masks import arranged, exact_mask, shares
from gpprune.prune.select.patterns import Pattern
from gpprune.prune.select.scores import ScoreKernel, layer_scores
from gpprune.prune.select.selection import lowest


def is_local(formula: Formula) -> bool:
    """Whether a weight's score depends on no other weight, and on no other feature's statistics."""
    return not any(isinstance(step, Reduce) for step in lower(formula).instructions)


def uniform_zeros(pattern: Pattern, sparsity: float, shape: torch.Size) -> int:
    """How many weights of a layer go where all its comparison groups have the same sparsity.

    Args:
        pattern: which weights compete.
        sparsity: what `Pattern.target` gives.
        shape: ``[out, in]`` of the layer.
    """
    groups, member = pattern.groups(shape), pattern.member(shape)
    width = shape.numel() // max(1, groups * member)
    return groups * member * pattern.count(sparsity, width)


@dataclass(frozen=True, eq=False)
class Choice:
    """How a layer's mask is chosen, of its weight as it stands at that time.

    Attributes:
        score: the compiled metric.
        statistics: the layer's by name, at least those that the metric reads.
        pattern: which weights compete.
        zeros: how many weights of the layer go, whenever they are chosen.
        local: whether the metric `is_local`, so that columns are scored without the others.
    """

    score: ScoreKernel
    statistics: Mapping[str, Tensor]
    pattern: Pattern
    zeros: int
    local: bool = False

    def mask(self, weight: Tensor, share: float = 1.0) -> Tensor:
        """The mask of the whole layer, bool ``[out, in]``, True where a weight goes.

        Args:
            weight: ``[out, in]``.
            share: of `zeros`, where not all are to go yet; rounded down to what the pattern can.

        Raises:
            GppruneError: a score is NaN.
            UsageError: the pattern cannot give so many zeros, or a statistic is missing.
        """
        grain = self.pattern.grain(weight.shape)
        zeros = self.zeros if share >= 1 else int(self.zeros * share) // grain * grain
        return exact_mask(self._scores(weight), zeros, self.pattern)

    def step(self, shape: torch.Size, wanted: int) -> int:
        """How many columns at a time `columns` can choose.

        It is ``wanted`` where the pattern's groups reach across columns, M for N:M, and all
        columns for a pattern of another kind.

        Args:
            shape: ``[out, in]``.
            wanted: how many are wished for.
        """
        out, inputs = shape
        groups = self.pattern.groups(shape)
        width = out * inputs // max(1, groups * self.pattern.member(shape))
        try:
            if self.pattern.even:
                within = self.pattern.groups((out, width)) * inputs == groups * width
                return width if within else inputs
            return min(wanted, inputs) if self.pattern.groups((out, 1)) == groups else inputs
        except Misfit:
            return inputs

    def columns(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """The mask of some columns with their share of the zeros.

        The masks of blocks that begin at multiples of `step` have `zeros` in sum, and every
        comparison group exactly what it has in `mask`.

        Args:
            weight: the whole layer, ``[out, in]``.
            start: of the columns.
            stop: of the columns.

        Returns:
            Bool ``[out, stop - start]``, True where a weight goes.

        Raises:
            GppruneError, UsageError: as `mask`.
        """
        inputs = weight.shape[1]
        if stop - start == inputs:
            return self.mask(weight)
        scores = self._scores(weight, start, stop)
        each, extra = shares(self.zeros, self.pattern, weight.shape)
        competing = arranged(scores, self.pattern)
        if self.pattern.even:  # groups that lie within the columns
            return self.pattern.restore(lowest(competing, each), scores.shape)

        def due(count: int) -> int:
            return count * stop // inputs - count * start // inputs

        parts = [lowest(competing[:extra], due(each + 1)), lowest(competing[extra:], due(each))]
        return self.pattern.restore(torch.cat(parts), scores.shape)

    def _scores(self, weight: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """The scores of some columns."""
        stop = weight.shape[1] if stop is None else stop
        if not self.local or stop - start == weight.shape[1]:
            return layer_scores(self.score, weight, self.statistics)[:, start:stop]
        part = {
            name: value[..., start:stop] if _has_columns(name) else value
            for name, value in self.statistics.items()
            if name in self.score.terminals
        }
        return layer_scores(self.score, weight[:, start:stop], part)


def _has_columns(name: str) -> bool:
    type_ = STATISTICS.find(name).type
    return type_ is not None and "in" in axes_of(type_)
