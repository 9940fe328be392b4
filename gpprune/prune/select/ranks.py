"""Ranks of a layer's scores, which give its mask at any number of zeros without another look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune.select.masks import Pattern, check_scores


@dataclass(frozen=True, eq=False)
class Ranks:
    """Each weight's rank among those that it competes with, 0 for the lowest score.

    Attributes:
        values: ``[groups, width]``, the narrowest unsigned integers that hold a group's ranks
            (16 bits for rows of up to 65,536 input features, 32 for layers of more).
        shape: ``(out, in)`` of the layer.
    """

    values: NDArray[Any]
    shape: tuple[int, int]

    def kept(self, zeros: int) -> Tensor:
        """True where a weight stays, bool ``[out, in]``: what `exact_mask` leaves."""
        each, extra = divmod(zeros, len(self.values))
        counts = np.full((len(self.values), 1), each)
        counts[:extra] += 1
        return torch.from_numpy(self.values >= counts.astype(np.uint32)).view(self.shape)


def rank_scores(scores: Tensor, pattern: Pattern) -> Ranks:
    """Rank a layer's scores within the pattern's comparison groups.

    Args:
        scores: ``[out, in]``.
        pattern: which weights compete.

    Raises:
        GppruneError: a score is NaN.
    """
    check_scores(scores)
    out, inputs = scores.shape
    flat = scores.float().cpu().numpy().reshape(pattern.groups(scores.shape), -1)
    width = flat.shape[1]
    dtype = np.uint8 if width <= 1 << 8 else np.uint16 if width <= 1 << 16 else np.uint32
    order = np.argsort(flat, axis=1, kind="stable")
    ranks = np.empty(flat.shape, dtype)
    np.put_along_axis(ranks, order, np.arange(width, dtype=dtype)[None], axis=1)
    return Ranks(ranks, (out, inputs))
