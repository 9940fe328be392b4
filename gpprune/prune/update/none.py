"""The weights that stay, as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gpprune.prune.update.damping import Damping


def none(
    weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor], damping: Damping
) -> Tensor:
    """The weight itself, ``[out, in]``.

    Args:
        weight: ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: none are read.
        damping: none is needed.
    """
    return weight
