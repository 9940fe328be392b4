"""Which weights of a layer go, for updates that choose as they change the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.compile.program import Reduce, lower
from gpprune.primitives import STATISTICS, Formula, axes_of
from gpprune.prune.select.arrangements import Misfit
from gpprune.prune.select.lowest.selection import lowest
from gpprune.prune.select.masks import arranged, exact_mask, shares
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.scores import ScoreKernel, layer_scores

BLOCK = 128  # columns: as many are chosen together where the pattern has no say


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
        together: columns that are chosen together come in multiples of this, or are all of them.
        last: the pattern that is reached in the end, where a shot goes but a part of the way.
        aim: ``[out, in]``, the weight whose outputs the layer is to come near, where the order of
            pruning has one for an update that keeps the weights; None: the dense weight.
    """

    score: ScoreKernel
    statistics: Mapping[str, Tensor]
    pattern: Pattern
    zeros: int
    local: bool = False
    together: int = 1
    last: Pattern | None = None
    aim: Tensor | None = None

    @property
    def final(self) -> Pattern:
        """The pattern whose groups weights may be exchanged within."""
        return self.last or self.pattern

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
        columns for a pattern of another kind. Where `together` says so, it is a little less than
        ``wanted``.

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
            free = self.pattern.groups((out, 1)) == groups
            return (
                min(wanted // self.together * self.together or inputs, inputs) if free else inputs
            )
        except Misfit:
            return inputs

    def columns(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """The mask of some columns with their share of the zeros.

        The masks of blocks that begin at multiples of `step` have `zeros` in sum, and every
        comparison group exactly what it has in `mask`. A block of `BLOCK` columns, or the `step`
        that this gives, has its proportional share but for less than one score a group, and no
        fewer of more zeros.

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

        turns = _turns(inputs, self.step(weight.shape, BLOCK))[start:stop]

        def due(count: int) -> int:
            each, over = divmod(count, inputs)
            return each * (stop - start) + sum(turn < over for turn in turns)

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


@lru_cache(maxsize=64)
def _turns(inputs: int, block: int) -> tuple[int, ...]:
    """When each column's turn is as the columns are given one more zero each, one after another.

    However many have had their turn, every block has had its proportional share of them (as by
    Webster's apportionment), and so have the halves of a block, and their halves.
    """
    starts = range(0, inputs, block)
    keys = []
    for start in starts:
        size = min(block, inputs - start)
        bits = max(1, (size - 1).bit_length())
        order = sorted(range(size), key=lambda column: f"{column:0{bits}b}"[::-1])
        keys += [((turn + 0.5) / size, start + column) for turn, column in enumerate(order)]
    turns = [0] * inputs
    for turn, (_, column) in enumerate(sorted(keys)):
        turns[column] = turn
    return tuple(turns)


def _has_columns(name: str) -> bool:
    type_ = STATISTICS.find(name).type
    return type_ is not None and "in" in axes_of(type_)
