"""What became of a pruned model, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gpprune.prune.model.structure import LinearLayer


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name in the model.
        zeros: how many of its weights are zero.
        size: how many weights it has.
    """

    name: str
    zeros: int
    size: int

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True)
class PruneReport:
    """What became of a model's linear layers.

    Attributes:
        layers: one report a layer, in the model's order.
        seconds: how long pruning took, calibration included.
    """

    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def zeros(self) -> int:
        """How many weights of the pruned layers are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """How many weights the pruned layers have."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the pruned layers."""
        return self.zeros / self.size

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        layers = [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers]
        return {
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
            "seconds": self.seconds,
            "layers": layers,
        }


def layer_reports(layers: Iterable[LinearLayer]) -> tuple[LayerReport, ...]:
    """Count the zeros of layers, in their order."""
    return tuple(
        LayerReport(
            layer.name,
            layer.weight.numel() - int(torch.count_nonzero(layer.weight)),
            layer.weight.numel(),
        )
        for layer in layers
    )
