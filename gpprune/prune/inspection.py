"""What a checkpoint holds, and whether that is what its record says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.prune.checkpoint import Record
from gpprune.prune.model.coupling.axes import Coupling, Refusal, free_units
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.coverage import Coverage, coverage
from gpprune.prune.model.digest import parameters_digest
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.select.arrangements import Misfit
from gpprune.prune.select.patterns import Pattern

GROUPS = (4, 8)
"""Consecutive input features that are looked at together: those of 2:4 and 4:8."""


@dataclass(frozen=True)
class InspectedLayer:
    """What one linear layer holds.

    Attributes:
        name: the layer's name in the model.
        role: its name inside its block.
        out_features: how many outputs it has.
        in_features: how many inputs.
        zeros: how many of its weights are zero.
        dead_outputs: rows of zeros.
        dead_inputs: columns of zeros.
        kept: by a number of consecutive inputs, the most weights that are not zero in any such
            group; without the numbers that do not divide the inputs.
    """

    name: str
    role: str
    out_features: int
    in_features: int
    zeros: int
    dead_outputs: int
    dead_inputs: int
    kept: dict[int, int]

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.out_features * self.in_features

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True)
class InspectedAxis:
    """An axis of several weights whose units may change places, or be taken out.

    Attributes:
        kind: one of `gpprune.prune.AXES`.
        name: the layer that reads it; of the residual stream empty.
        units: how many it has.
        free: how many of them nothing reads: the model is the same without them.
    """

    kind: str
    name: str
    units: int
    free: int


@dataclass(frozen=True)
class Inspection:
    """What a model holds.

    Attributes:
        layers: its linear layers, in its order.
        coverage: all matrices of the decoder blocks.
        block_zeros: how many weights of all these matrices are zero.
        axes: its coupled axes, each proven on its logits.
        refused: those that were not proven, and why.
        digest: SHA-256 of all its parameters, see `gpprune.prune.model_digest`.
        record: what lies beside its weights, if anything.
        faults: what is not as the record says, in plain words.
    """

    layers: tuple[InspectedLayer, ...]
    coverage: Coverage
    block_zeros: int
    axes: tuple[InspectedAxis, ...]
    refused: tuple[Refusal, ...]
    digest: str
    record: Record | None
    faults: tuple[str, ...]

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

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
            "blocks": {"zeros": self.block_zeros, **self.coverage.as_dict()},
            "axes": [asdict(axis) for axis in self.axes],
            "refused_axes": [asdict(axis) for axis in self.refused],
            "sha256": self.digest,
            "record": None if self.record is None else self.record.as_dict(),
            "faults": list(self.faults),
            "layers": [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers],
        }


@torch.no_grad()
def inspect_model(model: nn.Module, record: Record | None = None) -> Inspection:
    """Look at every linear layer and coupled axis of a model, and compare it with a record.

    Args:
        model: a causal language model, pruned by gpprune or by anything else.
        record: what its checkpoint says of itself.

    Raises:
        GppruneError: the model has no decoder blocks with linear layers.
    """
    layers = linear_layers(model)
    found = tuple(map(_inspected, layers.values()))
    digest, all_ = parameters_digest(model), coverage(model)
    faults = () if record is None else tuple(_faults(layers, found, digest, record))
    axes = couplings(model)
    inspected = tuple(_axis(model, axis) for axis in axes.offered)
    zeros = all_.zeros(model)
    return Inspection(found, all_, zeros, inspected, axes.refused, digest, record, faults)


def _axis(model: nn.Module, axis: Coupling) -> InspectedAxis:
    return InspectedAxis(axis.kind, axis.name, axis.units, int(free_units(model, axis).sum()))


def _inspected(layer: LinearLayer) -> InspectedLayer:
    there = layer.weight != 0
    outputs, inputs = there.shape
    kept = {
        size: int(there.reshape(outputs, -1, size).sum(2).max())
        for size in GROUPS
        if inputs % size == 0
    }
    return InspectedLayer(
        name=layer.name,
        role=layer.role,
        out_features=outputs,
        in_features=inputs,
        zeros=there.numel() - int(there.sum()),
        dead_outputs=int((~there.any(1)).sum()),
        dead_inputs=int((~there.any(0)).sum()),
        kept=kept,
    )


def _faults(
    layers: dict[str, LinearLayer],
    found: tuple[InspectedLayer, ...],
    digest: str,
    record: Record,
) -> Iterator[str]:
    """What of a model is not as its record says: pattern, zeros, weights."""
    pattern = record.recipe.shape
    for layer in layers.values():
        over, groups = _crowded(layer.weight, pattern)
        if over:
            where = f"in {over:,} of {groups:,} groups"
            yield f"{layer.name!r} breaks the pattern {pattern.text} {where}"
    for inspected in found:
        said = record.zeros.get(inspected.name)
        if said is None:
            yield f"{inspected.name!r} is not in the record"
        elif said != inspected.zeros:
            yield f"{inspected.name!r} has {inspected.zeros:,} zeros, and {said:,} were recorded"
    for name in sorted(record.zeros.keys() - layers.keys()):
        yield f"{name!r} is in the record, and the model has no such layer"
    if record.digest is not None and record.digest != digest:
        yield f"the weights are not those that were written, whose SHA-256 was {record.digest}"


def _crowded(weight: Tensor, pattern: Pattern) -> tuple[int, int]:
    """How many groups of a pattern keep more than it allows, and how many there are.

    None do under a pattern that says itself for no group how many stay.
    """
    if pattern.sparsity is None:
        return 0, 1
    try:
        kept = pattern.arrange((weight != 0).float()).sum(1)
    except Misfit:
        return 1, 1
    width = pattern.width(weight.shape)
    most = width - pattern.count(pattern.sparsity, width)
    return int((kept > most).sum()), len(kept)
