"""What gathers a statistic while calibration text flows through a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gpprune.prune.model.run import listening
from gpprune.prune.model.structure import LinearLayer


class Extent(NamedTuple):
    """How much calibration text there is: sequences, and the tokens of each."""

    samples: int
    length: int

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.samples * self.length


class Accumulator(Protocol):
    """Gathers something of each of a few layers, in any number of passes over a model.

    It is made with the layers by name. One that listens to gradients gets a backward pass of
    every sequence's mean next-token loss. One with an attribute ``zero_unreached`` that is true
    holds zeros of a layer that nothing has reached.
    """

    @property
    def backward(self) -> bool:
        """Whether it needs the backward pass."""

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gather from whatever flows through the layers inside this context."""

    def reached(self, name: str) -> bool:
        """Whether anything has flowed through a layer that could be gathered."""

    def key(self, name: str) -> Hashable:
        """The same for layers of which the same was gathered: a statistic is made of it once."""

    def held(self, name: str) -> Tensor:
        """What was gathered of a layer, ready to be read.

        Calibration asks at most once for each layer, so that it may be let go.
        """


MakeAccumulator = Callable[[Mapping[str, LinearLayer]], Accumulator]


class Activations(ABC):
    """Gathers from what layers read and write, by forward hooks: the base of such accumulators.

    A class of one's own says in `see` what one call of a layer adds to `seen`:

        class Peaks(Activations):
            def see(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
                peak = inputs.abs().flatten(0, -2).amax(0)
                self.seen[name] = torch.maximum(peak, self.seen.get(name, peak))
    """

    backward: ClassVar[bool] = False

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        self.layers = dict(layers)
        self.seen: dict[str, Tensor] = {}

    @abstractmethod
    def see(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """Add one call of a layer.

        Args:
            name: the layer's.
            inputs: ``[..., in]``.
            outputs: ``[..., out]``. No gradients are recorded of what is made of either.
        """

    def settle(self) -> None:  # noqa: B027  (most have nothing to finish)
        """Finish what waits for the next call; called when the watching ends."""

    def reached(self, name: str) -> bool:
        """Whether the layer was ever called."""
        return name in self.seen

    def key(self, name: str) -> Hashable:
        """Of each layer its own."""
        return name

    def held(self, name: str) -> Tensor:
        """What `see` has put there."""
        return self.seen[name]

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See every call of the layers inside this context."""
        layers = self.layers.items()
        try:
            with listening(
                layer.module.register_forward_hook(self._hook(name)) for name, layer in layers
            ):
                yield
        finally:
            self.settle()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        @torch.no_grad()
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.see(name, inputs[0], output)

        return hook
