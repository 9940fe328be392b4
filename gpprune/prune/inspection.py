"""What a checkpoint holds, and whether that is what its record says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gpprune.errors import UsageError
from gpprune.prune.checkpoint.record import Record
from gpprune.prune.model.coupling.axes import Coupling, Refusal, free_units
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.coverage import Coverage, coverage
from gpprune.prune.model.digest import parameters_digest
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.report import BlockCounts, LayerReport
from gpprune.prune.select.pattern import Pattern

GROUPS = (4, 8)
"""Consecutive input features that are looked at together: those of 2:4 and 4:8."""


@dataclass(frozen=True)
class InspectedLayer(LayerReport):
    """What one linear layer holds.

    Attributes:
        role: its name inside its block.
        out_features: how many outputs it has.
        in_features: how many inputs.
        dead_outputs: rows of zeros.
        dead_inputs: columns of zeros.
        kept: by a number of consecutive inputs, the most weights that are not zero in any such
            group; without the numbers that do not divide the inputs.
    """

    role: str
    out_features: int
    in_features: int
    dead_outputs: int
    dead_inputs: int
    kept: dict[int, int]


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
class Inspection(BlockCounts):
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

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            **self.counts(),
            "axes": [asdict(axis) for axis in self.axes],
            "refused_axes": [asdict(axis) for axis in self.refused],
            "sha256": self.digest,
            "record": None if self.record is None else self.record.as_dict(),
            "faults": list(self.faults),
        }

    def groups(self, *, each: bool = False) -> dict[str, LayerGroup]:
        """The layers by role, or each by its name, and last all of them.

        Args:
            each: whether every layer is a group of its own.
        """
        found: dict[str, list[InspectedLayer]] = {}
        for layer in self.layers:
            found.setdefault(layer.name if each else layer.role, []).append(layer)
        return {name: LayerGroup(own) for name, own in {**found, "all": [*self.layers]}.items()}

    def axis_counts(self) -> dict[tuple[str, int], tuple[int, int]]:
        """By kind and number of units: how many such axes, and how many of their units are free."""
        free: dict[tuple[str, int], list[int]] = {}
        for axis in self.axes:
            free.setdefault((axis.kind, axis.units), []).append(axis.free)
        return {key: (len(own), sum(own)) for key, own in free.items()}

    def refusals(self) -> Counter[tuple[str, str]]:
        """How many axes of a kind are not offered for one reason."""
        return Counter((axis.kind, axis.why) for axis in self.refused)


class LayerGroup:
    """Several layers in a row of a table.

    Args:
        layers: one at least.

    Attributes:
        sparsity: the share of zeros in all their weights.
        least: that of the layer with the fewest, as a share.
        most: that of the layer with the most.
        dead_outputs: how many they have together.
        dead_inputs: likewise.
        kept: as of an `InspectedLayer`, the most of any; without numbers that one of them lacks.
    """

    def __init__(self, layers: Sequence[InspectedLayer]) -> None:
        shares = [layer.sparsity for layer in layers]
        self.least, self.most = min(shares), max(shares)
        self.sparsity = sum(layer.zeros for layer in layers) / sum(layer.size for layer in layers)
        self.dead_outputs = sum(layer.dead_outputs for layer in layers)
        self.dead_inputs = sum(layer.dead_inputs for layer in layers)
        common = set.intersection(*(set(layer.kept) for layer in layers))
        self.kept = {size: max(layer.kept[size] for layer in layers) for size in sorted(common)}


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
    digest = parameters_digest(model)
    faults = () if record is None else tuple(_faults(layers, found, digest, record))
    matrices, axes = coverage(model), couplings(model)
    return Inspection(
        layers=found,
        coverage=matrices,
        block_zeros=matrices.zeros(model),
        axes=tuple(_axis(model, axis) for axis in axes.offered),
        refused=axes.refused,
        digest=digest,
        record=record,
        faults=faults,
    )


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
        zeros=there.numel() - int(there.sum()),
        size=there.numel(),
        experts=layer.experts,
        role=layer.role,
        out_features=outputs,
        in_features=inputs,
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
    for layer in layers.values():
        crowded = None if record.shrunk else _crowded(layer, record.recipe.shape)
        if crowded is not None:
            yield crowded
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


def _crowded(layer: LinearLayer, pattern: Pattern) -> str | None:
    """How a layer breaks a pattern that says itself how many of a group stay, if it does."""
    if pattern.sparsity is None:
        return None
    try:
        pattern.check_layer(repr(layer.name), layer.weight.shape)
    except UsageError as error:
        return str(error)
    kept = pattern.arrange((layer.weight != 0).float()).sum(1)
    width = pattern.width(layer.weight.shape)
    over = int((kept > width - pattern.count(pattern.sparsity, width)).sum())
    if not over:
        return None
    return f"{layer.name!r} breaks the pattern {pattern.text} in {over:,} of {len(kept):,} groups"
