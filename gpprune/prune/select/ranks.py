"""Ranks of a layer's scores, which give its mask at any number of zeros without another look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.prune.select.masks import arranged, shares
from gpprune.prune.select.pattern import Pattern


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank of each score among those that it competes with, 0 for the lowest.

    Attributes:
        values: ``[groups, width]``, the narrowest unsigned integers that hold a group's ranks
            (16 bits for rows of up to 65,536 input features, 32 for layers of more).
        shape: ``(out, in)`` of the layer.
        pattern: which weights compete.
    """

    values: NDArray[Any]
    shape: tuple[int, int]
    pattern: Pattern

    def mask(self, zeros: int) -> Tensor:
        """The mask `exact_mask` gives, on the CPU: bool ``[out, in]``, True where a weight goes.

        Raises:
            UsageError: the pattern cannot give so many zeros.
        """
        each, extra = shares(zeros, self.pattern, self.shape)
        counts = np.full((len(self.values), 1), each, np.uint32)
        counts[:extra] += 1
        chosen = torch.from_numpy(self.values < counts)
        return self.pattern.restore(chosen, self.shape).contiguous()


def rank_scores(scores: Tensor, pattern: Pattern) -> Ranks:
    """Rank a layer's scores within the pattern's comparison groups.

    Args:
        scores: ``[out, in]``.
        pattern: which weights compete.

    Raises:
        GppruneError: a score is NaN.
        UsageError: the pattern does not fit the shape.
    """
    out, inputs = scores.shape
    competing = arranged(scores, pattern).float().cpu().numpy()
    width = competing.shape[1]
    dtype = np.uint8 if width <= 1 << 8 else np.uint16 if width <= 1 << 16 else np.uint32
    order = np.argsort(competing, axis=1, kind="stable")
    ranks = np.empty(competing.shape, dtype)
    np.put_along_axis(ranks, order, np.arange(width, dtype=dtype)[None], axis=1)
    return Ranks(ranks, (out, inputs), pattern)
