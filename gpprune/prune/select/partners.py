"""Which weights of a row may be exchanged for one another without leaving their pattern."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.select.pattern import Pattern


@lru_cache(maxsize=64)
def partners(pattern: Pattern, shape: tuple[int, int]) -> Tensor:
    """The input features of a layer, parted so that those of one part compete in every row.

    Args:
        pattern: which weights compete.
        shape: ``[out, in]`` of the layer.

    Returns:
        Input features, int64 ``[parts, width]``; not to be written to.

    Raises:
        UsageError: the pattern prunes more than single weights, leaves some out, or parts rows
            unequally or differently.
    """
    groups, width = pattern.groups(shape), pattern.width(shape)
    if pattern.member(shape) != 1:
        raise UsageError(
            f"the pattern {pattern.text!r} prunes several weights at once, and none of them can be "
            "exchanged alone: take another weight update than one that swaps"
        )
    if not pattern.restore(torch.ones(groups, width, dtype=torch.bool), shape).all():
        raise UsageError(
            f"the pattern {pattern.text!r} never prunes some weights of a layer, and what it may "
            "exchange is not known: take another weight update than one that swaps"
        )
    # `restore` alone says where a group lies: it is shown the groups by the bits of their numbers
    group = torch.zeros(shape, dtype=torch.int32)
    for bit in range(max(0, groups - 1).bit_length()):
        chosen = (torch.arange(groups)[:, None] >> bit & 1).bool().expand(groups, width)
        group += pattern.restore(chosen, shape).int() << bit
    order = group[0].sort(stable=True).indices
    widths = group[0].bincount()
    widths = widths[widths > 0]
    parts = order.view(len(widths), -1) if (widths == widths[0]).all() else order[None]
    for row in group:
        together = row[parts]
        if not (together == together[:, :1]).all():
            raise UsageError(
                f"the pattern {pattern.text!r} parts its rows unequally, or differently: take "
                "another weight update than one that swaps"
            )
    return parts
