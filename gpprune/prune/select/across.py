"""One threshold over the scores of all layers of a model: how many of each lie below it.

It is found by counting, as in `histogram`: one pass over all scores counts the upper halves of
their keys, another the lower halves beside the one that holds the threshold. No score is kept, so
that a model of any size takes the memory of its largest layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune.select.lowest.histogram import HALVES, count_halves

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Bound:
    """What a layer may give up.

    Attributes:
        most: so many weights at most, a multiple of `member`.
        member: how many weights go with each of its scores, see `Pattern.member`.
    """

    most: int
    member: int = 1

    def clipped(self, scores: Counts) -> Counts:
        """The weights that go with so many scores."""
        found: Counts = np.minimum(scores * self.member, self.most)
        return found


def zeros_across(
    scores: Callable[[], Iterable[Tensor]], zeros: int, bounds: Sequence[Bound]
) -> list[int]:
    """The zeros of each layer where the lowest scores of all layers together go.

    A layer that reaches its bound gives up no more, and the threshold rises until the others make
    up for it. Equal scores go in the order of the layers, and inside a layer in that of
    `gpprune.prune.exact_mask`, which makes the masks of these numbers.

    Args:
        scores: called twice, and gives the same both times: each layer's scores in order, of any
            shape, without NaN. They are compared as float32. Each is read before the next is asked
            for.
        zeros: how many weights go; no more than the bounds allow do.
        bounds: of each layer.

    Returns:
        The zeros of each layer, a multiple of its `member` and at most its `most`. They add up to
        `zeros`, or where no member is 1 to as much of it as members allow.
    """
    zeros = min(zeros, sum(bound.most for bound in bounds))
    if zeros <= 0:
        return [0] * len(bounds)
    nothing = np.zeros(len(bounds), np.int64)
    upper, below, held = _place((count_halves(s.float()) for s in scores()), nothing, bounds, zeros)
    halves = (
        count_halves(s.float(), upper) if among else np.zeros(HALVES, np.int64)
        for s, among in zip(scores(), held, strict=True)
    )
    _, below, tied = _place(halves, below, bounds, zeros)
    found = [int(bound.clipped(count)) for bound, count in zip(bounds, below, strict=True)]
    left = zeros - sum(found)
    for at, bound in enumerate(bounds):
        taken = min(left, int(bound.clipped(below[at] + tied[at])) - found[at])
        taken -= taken % bound.member
        found[at] += taken
        left -= taken
    return found


def _place(
    counts: Iterable[Counts], below: Counts, bounds: Sequence[Bound], zeros: int
) -> tuple[int, Counts, Counts]:
    """The half at which the weights that go reach their number.

    Args:
        counts: of each layer, `[65536]`.
        below: ``[layers]``, how many scores of each lie below all of these.
        bounds: of each layer.
        zeros: how many weights go.

    Returns:
        The half, and ``[layers]`` each, how many scores lie below it and how many at it.
    """
    gained = np.zeros(HALVES, np.int64)
    kept: list[tuple[Counts, Counts]] = []  # the halves that occur, and how many lie up to each
    for own, under, bound in zip(counts, below, bounds, strict=True):
        places = np.flatnonzero(own)
        upto = np.concatenate([[under], under + own[places].cumsum()])
        gained[places] += np.diff(bound.clipped(upto))
        kept.append((places, upto))
    start = sum(int(bound.clipped(under)) for bound, under in zip(bounds, below, strict=True))
    half = int(np.searchsorted(start + gained.cumsum(), zeros))
    at = [np.searchsorted(places, [half, half + 1]) for places, _ in kept]
    edges = np.array([upto[place] for place, (_, upto) in zip(at, kept, strict=True)])
    return half, edges[:, 0], edges[:, 1] - edges[:, 0]
