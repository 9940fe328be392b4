"""The weights that stay, as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def none(weight: Tensor, mask: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """The weight itself, ``[out, in]``.

    Args:
        weight: ``[out, in]``.
        mask: bool ``[out, in]``, True where a weight goes.
        statistics: none are read.
    """
    return weight
