"""Allocations on a model: what they read of it, and the zeros that they give each layer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpprune.compile import kernel
from gpprune.compile.profiles import profile
from gpprune.errors import UsageError
from gpprune.primitives import Formula, UnitPrimitive
from gpprune.primitives.units import dsa_ops as dsa
from gpprune.primitives.units.functions import Layout, OnFlat, OnMatrix, OnModel, OnValues
from gpprune.prune.allocate.budget import project, zero_counts
from gpprune.prune.model.structure import LinearLayer
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.scores import layer_scores

UNITS = ("layer", "block")


class Allocator:
    """Evaluates allocations on one model, and remembers every reduction it has computed.

    A reduction's result is one number a unit, so that remembering all of a search's takes
    nothing, while computing one takes a pass over the model's weights.
    """

    def __init__(
        self,
        layers: Mapping[str, LinearLayer],
        statistics: Mapping[str, Mapping[str, Tensor]],
        target: float,
        unit: str = "layer",
    ) -> None:
        """Look at the model's shape; nothing is computed yet.

        Args:
            layers: by name, in the model's order; their weights are those of the dense model.
            statistics: of each layer by name, by layer name; a formula that reads one that is
                missing is a UsageError.
            target: the share of all weights to prune.
            unit: "layer", or "block" for one sparsity a decoder block.

        Raises:
            UsageError: an unknown unit.
        """
        if unit not in UNITS:
            raise UsageError(f"there is no unit {unit!r}: choose from {', '.join(UNITS)}")
        self._layers = list(layers.values())
        self._statistics = statistics
        self.unit = unit
        blocks = [layer.block for layer in self._layers]
        # the place of each layer's unit, units in the model's order
        ids = list(range(len(blocks))) if unit == "layer" else blocks
        place = {unit_id: at for at, unit_id in enumerate(dict.fromkeys(ids))}
        self._unit_of = torch.tensor([place[unit_id] for unit_id in ids])
        self._members = [
            [layer for layer, at in zip(self._layers, self._unit_of, strict=True) if at == unit]
            for unit in range(len(place))
        ]
        roles = [layer.role if unit == "layer" else "" for layer in self._layers]
        numbers = {role: at for at, role in enumerate(dict.fromkeys(roles))}
        first = [int((self._unit_of == at).nonzero()[0, 0]) for at in range(len(place))]
        self.layer_sizes = torch.tensor([layer.size for layer in self._layers])
        self.layout = Layout(
            sizes=self._summed(self.layer_sizes.double()),
            blocks=torch.tensor([blocks[at] for at in first]),
            roles=torch.tensor([numbers[roles[at]] for at in first]),
            target=target,
        )
        self._known: dict[tuple[str | float, ...], Tensor] = {}

    def at(self, target: float) -> Allocator:
        """The same units at another target; what either has reduced, both know."""
        other = copy.copy(self)
        other.layout = replace(self.layout, target=target)
        return other

    @cached_property
    def terminals(self) -> Mapping[str, Tensor]:
        """`depth`, `fan_in`, `fan_out` and `size` of the units, `[units]`, float64."""
        count = self._summed(torch.ones(len(self._layers), dtype=torch.float64))
        ins = torch.tensor([float(layer.in_features) for layer in self._layers]).double()
        outs = torch.tensor([float(layer.out_features) for layer in self._layers]).double()
        deepest = max(1, int(self.layout.blocks.max()))
        return {
            "depth": self.layout.blocks.double() / deepest,
            "fan_in": self._summed(ins) / count,
            "fan_out": self._summed(outs) / count,
            "size": self.layout.sizes,
        }

    def sparsities(self, allocation: Formula, metric: Formula) -> Tensor:
        """The sparsity of each layer under an allocation.

        Args:
            allocation: of the `ALLOCATION` language.
            metric: whose scores `S` stands for.

        Returns:
            `[layers]`, float64; the mean weighted by the layers' sizes is the target.

        Raises:
            Unfit: the allocation gives a value that is not finite.
            UsageError: it reads a statistic that was not measured.
        """
        found = profile(allocation, metric, self)
        return project(found, self.layout.sizes, self.layout.target)[self._unit_of]

    def zeros(self, allocation: Formula, metric: Formula, pattern: Pattern) -> Tensor:
        """The number of zeros of each layer, int64 `[layers]`; see `zero_counts`."""
        return self._counts(self.sparsities(allocation, metric), pattern)

    def zeros_near(self, sparsities: Mapping[str, float], pattern: Pattern) -> Tensor:
        """As `zeros`, of sparsities by layer name that are first brought to the target."""
        given = torch.tensor([sparsities[layer.name] for layer in self._layers]).double()
        return self._counts(project(given, self.layer_sizes, self.layout.target), pattern)

    def _counts(self, sparsities: Tensor, pattern: Pattern) -> Tensor:
        grains = torch.tensor([pattern.grain(layer.shape) for layer in self._layers])
        return zero_counts(sparsities, self.layer_sizes, self.layout.target, grains)

    def reduced(
        self, reduction: UnitPrimitive, elements: Formula, numbers: tuple[float, ...]
    ) -> Tensor:
        """`[units]`, float64: a reduction of an element-wise formula; computed once."""
        form = elements.canonical(None)
        key: tuple[str | float, ...] = (reduction.name, form.text, *numbers)
        if isinstance(reduction.lowering, OnModel):
            key = (*key, self.layout.target)
        if key not in self._known:
            self._known[key] = self._reduce(reduction, form, numbers)
        return self._known[key]

    def dsa(self, chain: Sequence[UnitPrimitive], elements: Formula) -> Tensor:
        """`[units]`, float64: the importance of each unit's scores in one vector."""
        key = (*(entry.name for entry in chain), elements.text)
        if key not in self._known:
            values = []
            for unit in self._values(elements):
                vector = torch.from_numpy(unit)
                for entry in chain:
                    if isinstance(entry.lowering, OnFlat):
                        vector = entry.lowering.apply(vector)
                values.append(dsa.importance(vector))
            self._known[key] = torch.tensor(values, dtype=torch.float64)
        return self._known[key]

    def _reduce(
        self, reduction: UnitPrimitive, elements: Formula, numbers: tuple[float, ...]
    ) -> Tensor:
        match reduction.lowering:
            case OnModel(reduce):
                return reduce(list(self._values(elements)), self.layout)
            case OnValues(reduce):
                found = [reduce(values, *numbers) for values in self._values(elements)]
                return torch.tensor(found, dtype=torch.float64)
            case OnMatrix(reduce):
                each = [reduce(scores) for scores in self._matrices(elements)]
                count = self._summed(torch.ones(len(each), dtype=torch.float64))
                return self._summed(torch.tensor(each, dtype=torch.float64)) / count
        raise TypeError(f"{reduction.name} is no reduction")

    def _matrices(self, elements: Formula) -> Iterator[NDArray[Any]]:
        for layer in self._layers:
            yield self._scores(elements, layer)

    def _values(self, elements: Formula) -> Iterator[NDArray[Any]]:
        """Each unit's values in one dimension, float32."""
        for members in self._members:
            parts = [self._scores(elements, layer).reshape(-1) for layer in members]
            yield parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _scores(self, elements: Formula, layer: LinearLayer) -> NDArray[Any]:
        size = int(self.layer_sizes.sum())
        score = kernel(elements, elements=size, device=layer.weight.device)
        statistics = self._statistics.get(layer.name)
        scores: NDArray[Any] = layer_scores(score, layer.weight, statistics).cpu().numpy()
        return scores

    def _summed(self, values: Tensor) -> Tensor:
        """What layers have, added up in their units."""
        count = int(self._unit_of.max()) + 1
        return torch.zeros(count, dtype=values.dtype).index_add_(0, self._unit_of, values)
