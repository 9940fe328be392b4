"""Sums over what layers read and write: of squares, of whatever else is made of an input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from gpprune.prune.measure.accumulator import Activations
from gpprune.prune.model.structure import LinearLayer


class OutputSquares(Activations):
    """Each output neuron's sum of squares over all tokens, float64 ``[out]``."""

    zero_unreached: ClassVar[bool] = True

    def see(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Add the squares of a layer's outputs ``[..., out]``."""
        found = squares(outputs)
        self.seen[name] = self.seen[name] + found if name in self.seen else found

    def held(self, name: str) -> Tensor:
        """The sums of a layer; of one that was never called, zeros."""
        if name in self.seen:
            return self.seen[name]
        layer = self.layers[name]
        return torch.zeros(layer.out_features, dtype=torch.float64, device=layer.weight.device)


@dataclass(eq=False)
class _Read:
    """The tensor that layers read last, what was made of it, and the layers."""

    tensor: Tensor
    version: int
    made: Tensor
    readers: list[str] = field(default_factory=list)


class InputSums(Activations):
    """Sums of what `of` makes of the tensors that layers read: once, and one for all readers.

    Query, key and value read one tensor, and so do gate and up.
    """

    zero_unreached: ClassVar[bool] = True

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        super().__init__(layers)
        self._sums: dict[tuple[str, ...], Tensor] = {}  # by the layers that read a tensor
        self._last: _Read | None = None

    @abstractmethod
    def of(self, inputs: Tensor) -> Tensor:
        """What is summed of one tensor ``[..., in]``, in memory of its own."""

    def shape(self, features: int) -> tuple[int, ...]:
        """The shape of what is summed."""
        return (features,)

    def see(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Count a layer to the readers of its input."""
        last = self._last
        if last is None or last.tensor is not inputs or last.version != inputs._version:
            self.settle()
            last = self._last = _Read(inputs, inputs._version, self.of(inputs))
        last.readers.append(name)

    def settle(self) -> None:
        """Add what was made of the last tensor to the sum of the layers that read it."""
        last, self._last = self._last, None
        if last is None:
            return
        readers = tuple(last.readers)
        if readers in self._sums:
            self._sums[readers] += last.made
        else:
            self._sums[readers] = last.made

    def _parts(self, name: str) -> list[tuple[tuple[str, ...], int]]:
        """The sums that count to a layer, and how often."""
        return [(readers, readers.count(name)) for readers in self._sums if name in readers]

    def reached(self, name: str) -> bool:
        """Whether the layer was ever given anything but zeros."""
        return any(bool(self._sums[readers].any()) for readers, _ in self._parts(name))

    def key(self, name: str) -> Hashable:
        """The same for layers that read the same tensors."""
        return (self.layers[name].in_features, *self._parts(name))

    def held(self, name: str) -> Tensor:
        """The sum over all that the layer read, float64; of a layer that read nothing, zeros."""
        layer = self.layers[name]
        total = torch.zeros(
            self.shape(layer.in_features), dtype=torch.float64, device=layer.weight.device
        )
        for readers, times in self._parts(name):
            total.add_(self._sums[readers], alpha=times)
        return total


class InputSquares(InputSums):
    """Each input feature's sum of squares over all tokens, float64 ``[in]``."""

    def of(self, inputs: Tensor) -> Tensor:
        """The squares of one tensor ``[..., in]``."""
        return squares(inputs)


class InputTotals(InputSums):
    """Each input feature's sum over all tokens, float64 ``[in]``."""

    def of(self, inputs: Tensor) -> Tensor:
        """The totals of one tensor ``[..., in]``; a sequence is summed in float32."""
        return inputs.reshape(-1, inputs.shape[-1]).float().sum(dim=0).double()


def squares(x: Tensor) -> Tensor:
    """Each feature's sum of squares, float64 ``[features]``.

    One sequence is summed in float32 (torch's sums are pairwise) and sequences in float64: a
    float64 norm along the first dimension takes eighteen times as long, more than the model.
    """
    flat = x.reshape(-1, x.shape[-1]).float()
    return (flat * flat).sum(dim=0).double()
