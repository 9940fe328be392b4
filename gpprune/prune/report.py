"""What became of a pruned model, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gpprune.prune.coupled.permutation import Permutation
from gpprune.prune.model.coverage import Coverage, coverage
from gpprune.prune.model.structure import LinearLayer, linear_layers


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
class Shot:
    """What one shot of several did.

    Attributes:
        sparsity: the share of zeros in the pruned layers after it.
        zeros: how many weights are zero after it.
        before: the mean next-token loss on its calibration text before it, in nats a token.
        after: the same after it.
        predicted: what the curvature said that the loss would grow by; None where the weight
            update reads no curvature of the outputs.
        seconds: how long it took.
        recovered: the loss on that text after training on it; None where nothing is trained.
    """

    sparsity: float
    zeros: int
    before: float
    after: float
    predicted: float | None
    seconds: float
    recovered: float | None = None

    @property
    def end(self) -> float:
        """The loss that it ends with."""
        return self.after if self.recovered is None else self.recovered


class BlockCounts:
    """What every report on a model's decoder blocks counts.

    Attributes:
        layers: one report a linear layer, in the model's order.
        coverage: all matrices of the decoder blocks: what is left alone, and why.
        block_zeros: how many weights of all these matrices are zero.
    """

    layers: Sequence[LayerReport]
    coverage: Coverage
    block_zeros: int

    @property
    def zeros(self) -> int:
        """How many weights of the linear layers are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """How many weights the linear layers have."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the linear layers."""
        return self.zeros / self.size

    @property
    def block_sparsity(self) -> float:
        """The share of zeros in all matrices of the decoder blocks, left alone or not."""
        return self.block_zeros / self.coverage.size

    def counts(self) -> dict[str, Any]:
        """Plain values for JSON; "blocks" is about all matrices of the blocks."""
        return {
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
            "blocks": {
                "zeros": self.block_zeros,
                "sparsity": self.block_sparsity,
                **self.coverage.as_dict(),
            },
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
        }


@dataclass(frozen=True)
class PruneReport(BlockCounts):
    """What became of a model's linear layers.

    Attributes:
        layers: one report a layer that was pruned, in the model's order.
        seconds: how long pruning took, calibration included.
        coverage: all matrices of the decoder blocks: what is left alone, and why.
        block_zeros: how many weights of all these matrices are zero.
        shots: what each did, where there were several or it was trained.
        permutation: how channels were permuted first; None: they were not.
    """

    layers: tuple[LayerReport, ...]
    seconds: float
    coverage: Coverage
    block_zeros: int
    shots: tuple[Shot, ...] = ()
    permutation: Permutation | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        shots = {"shots": [asdict(shot) for shot in self.shots]} if self.shots else {}
        permuted = {} if self.permutation is None else {"permutation": self.permutation.summary()}
        return {**self.counts(), "seconds": self.seconds, **shots, **permuted}


def prune_report(
    model: nn.Module,
    seconds: float,
    shots: tuple[Shot, ...] = (),
    permutation: Permutation | None = None,
) -> PruneReport:
    """Count the zeros of a pruned model.

    Args:
        model: a causal language model.
        seconds: how long pruning it took.
        shots: what each did, where there were several or it was trained.
        permutation: how its channels were permuted first, if they were.
    """
    layers = tuple(_counted(layer) for layer in linear_layers(model).values())
    found = coverage(model)
    return PruneReport(layers, seconds, found, found.zeros(model), shots, permutation)


def _counted(layer: LinearLayer) -> LayerReport:
    size = layer.weight.numel()
    return LayerReport(layer.name, size - int(torch.count_nonzero(layer.weight)), size)
