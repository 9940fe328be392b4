"""Masks mended by swaps: a pruned weight comes back, and one that stayed goes in its place.

A metric judges each weight by itself. What a layer loses is ``<D, D A>``, D being all that goes and
A = E[a a^T] of its inputs, and there losses can cancel. Swaps within a row lower it, as in
SparseSwaps (Zimmer et al. 2025, arXiv 2512.10922); DSnoT (Zhang et al. 2024, arXiv 2310.08915) has
them by the means of the inputs. The weights that stay are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gpprune.prune.select.partners import partners
from gpprune.prune.update.choice import Choice
from gpprune.prune.update.damping import Damping, computed_in, scaled
from gpprune.prune.update.swap_rows import swap_rows

# Weights of the rows that swap at once: on a CPU they stay in its cache, elsewhere launches count.
_AT_ONCE_ON_CPU = 2**17
_AT_ONCE_ELSEWHERE = 2**24


def swaps(
    weight: Tensor, choice: Choice, statistics: Mapping[str, Tensor], damping: Damping
) -> tuple[Tensor, Tensor]:
    """The weight as it is, and its mask after swaps.

    Args:
        weight: dense, ``[out, in]``.
        choice: how the mask is chosen at first.
        statistics: ``aaT``, E[a a^T] of the layer's inputs, ``[in, in]``.
        damping: not read: nothing is inverted. One of the diagonals' mean would hide all inputs
            beside one that is much larger.

    Returns:
        ``weight`` itself, and the mask, bool ``[out, in]``. The pattern's groups have as many
        zeros in each row as they had at first.

    Raises:
        GppruneError, UsageError: as `Choice.mask`; the pattern prunes more than single weights.
    """
    parts = partners(choice.final, tuple(weight.shape)).to(weight.device)
    A = scaled(statistics["aaT"], 0.0, computed_in(weight))
    return weight, swapped(weight, choice.mask(weight), A, parts, choice.aim)


@torch.no_grad()
def swapped(
    weight: Tensor, mask: Tensor, A: Tensor, parts: Tensor, aim: Tensor | None = None
) -> Tensor:
    """The mask after swaps, until none that a row tries lowers what the row loses.

    In each part, a row tries the pruned weight that is best to bring back by itself, in exchange
    for the best that can go, and the other way round; in narrow parts it may try all pairs. It
    takes the best swap of all parts. A weight of zero never comes back.

    Args:
        weight: ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        A: ``[in, in]``, positive semidefinite.
        parts: input features, int64 ``[parts, width]``: weights are exchanged within a part.
        aim: ``[out, in]``, what the weight that stays is to come near; by default ``weight``.

    Returns:
        Bool ``[out, in]``, with as many zeros in each part of each row. No row loses more than by
        ``mask``, but for rounding.
    """
    dtype = computed_in(weight)
    A, weight = A.to(weight.device, dtype), weight.to(dtype)
    lost = (weight if aim is None else aim.to(weight)) - weight.masked_fill(mask, 0)
    bent = lost @ A  # half the gradient of the loss by what is lost
    # a gain below is rounding, and its swap might be made and undone for ever
    least = (bent * lost).sum(1).clamp(min=0) * 4 * torch.finfo(dtype).eps
    if weight.device.type == "cpu" and dtype == torch.float32:
        found = swap_rows(weight, mask, A, parts, bent, least)
        if found is not None:
            return found
    order = parts.reshape(-1)  # so that a part lies in one piece
    search = _Search(A[order[:, None], order], parts.shape[1])
    size = _AT_ONCE_ON_CPU if weight.device.type == "cpu" else _AT_ONCE_ELSEWHERE
    rows = max(1, size // max(1, weight.shape[1]))
    found = torch.empty_like(mask)
    for first in range(0, len(weight), rows):
        at = slice(first, first + rows)
        found[at, order] = search(weight[at, order], mask[at, order], bent[at, order], least[at])
    return found


class _Search:
    """Swaps in the rows of a weight whose parts are of consecutive features.

    Args:
        A: ``[in, in]``.
        width: of the parts; it divides in.
    """

    def __init__(self, A: Tensor, width: int) -> None:
        self._A, self._width = A, width
        place = torch.arange(len(A), device=A.device).view(-1, width)
        self._own = A[place[:, :, None], place[:, None, :]]  # of each part
        self._first = place[:, 0]
        self._part = torch.arange(len(place), device=A.device)

    def __call__(self, weight: Tensor, mask: Tensor, bent: Tensor, least: Tensor) -> Tensor:
        """The mask of some rows, bool ``[rows, in]``; the others are as of `swapped`."""
        goes, bent = mask.clone(), bent.clone()
        alone = weight.square() * self._A.diagonal()
        for _ in range(weight.shape[1]):
            back, go, change = self._best(weight, goes, bent, alone)
            at = (change < -least).nonzero()[:, 0]
            if len(at) == 0:
                break
            back, go = back[at], go[at]
            goes[at, back], goes[at, go] = False, True
            bent[at] += weight[at, go, None] * self._A[go] - weight[at, back, None] * self._A[back]
        return goes

    def _best(
        self, weight: Tensor, goes: Tensor, bent: Tensor, alone: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What comes back and what goes in each row, as columns, and how the loss changes."""
        slope = 2 * weight * bent
        by_part = (len(weight), len(self._own), self._width)
        back = (alone - slope).masked_fill_(~goes | (weight == 0), math.inf).view(by_part)
        go = (alone + slope).masked_fill_(goes, math.inf).view(by_part)
        cheapest, i = back.min(2)
        least, j = go.min(2)
        change_i, other = (go - self._shared(weight, i)).add_(cheapest[..., None]).min(2)
        change_j, one = (back - self._shared(weight, j)).add_(least[..., None]).min(2)
        first = change_i <= change_j
        change, part = torch.where(first, change_i, change_j).min(1)
        i, j = torch.where(first, i, one), torch.where(first, other, j)
        picked = part[:, None]
        start = self._first[part]
        return i.gather(1, picked)[:, 0] + start, j.gather(1, picked)[:, 0] + start, change

    def _shared(self, weight: Tensor, at: Tensor) -> Tensor:
        """What a weight of each part and each other of its part lose together.

        Args:
            weight: ``[rows, in]``.
            at: int64 ``[rows, parts]``, places within the parts.

        Returns:
            ``[rows, parts, width]``.
        """
        theirs = weight.view(len(weight), -1, self._width)
        own = theirs.gather(2, at[..., None])
        return 2 * own * theirs * self._own[self._part, at]
