"""Statistics of no model, of whatever shape: what they are costs a kernel no time."""

from __future__ import annotations

import torch
from torch import Tensor

from gpprune.primitives import STATISTICS, Sign, Statistic, axes_of


def statistics(
    out_features: int,
    in_features: int,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Every statistic that a formula can read, of one layer, float32.

    Args:
        out_features: of the layer.
        in_features: of the layer.
        device: where they lie, and where the generator does.
        generator: what draws them; None for torch's own.
    """
    sizes = {"out": out_features, "in": in_features}
    found = {}
    for name, entry in STATISTICS.items():
        if entry.type is not None:
            shape = [size for axis, size in sizes.items() if axis in axes_of(entry.type)]
            found[name] = _drawn(entry, torch.empty(shape, device=device), generator)
    return found


def _drawn(entry: Statistic, into: Tensor, generator: torch.Generator | None) -> Tensor:
    """Normal, or where the sign is known, between 0.1 and 1.1: nothing divides by nearly 0."""
    if entry.sign is Sign.ANY:
        return into.normal_(generator=generator)
    return into.uniform_(0.1, 1.1, generator=generator)
