"""Which weights of a row may be exchanged for one another without leaving their pattern."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.select.patterns import Pattern


@lru_cache(maxsize=64)
def partners(pattern: Pattern, shape: tuple[int, int]) -> Tensor:
    """The input features of a layer, parted so that those of one part compete in every row.

    Args:
        pattern: which weights compete.
        shape: ``[out, in]`` of the layer.

    Returns:
        Input features, int64 ``[parts, width]``; not to be written to.

    Raises:
        UsageError: the pattern prunes more than single weights, or parts the rows differently.
    """
    out, inputs = shape
    if pattern.member(shape) != 1:
        raise UsageError(
            f"the pattern {pattern.text!r} prunes several weights at once, and none of them can be "
            "exchanged alone: take another weight update than one that swaps"
        )
    places = torch.arange(out * inputs).view(shape)
    arranged = pattern.arrange(places)
    group = torch.empty(out * inputs, dtype=torch.int64)
    group[arranged.reshape(-1)] = torch.arange(len(arranged)).repeat_interleave(arranged.shape[1])
    group = group.view(shape)
    order = group[0].sort(stable=True).indices
    widths = group[0].bincount()
    widths = widths[widths > 0]
    parts = order.view(len(widths), -1) if (widths == widths[0]).all() else order[None]
    together = group[:, parts]
    if not (together == together[..., :1]).all():
        raise UsageError(
            f"the pattern {pattern.text!r} has rows whose weights compete in unequal parts: take "
            "another weight update than one that swaps"
        )
    return parts
