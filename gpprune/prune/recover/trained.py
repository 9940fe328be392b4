"""What is trained of a pruned model: the weights that stay, or low-rank adapters under the mask."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpprune.errors import UsageError
from gpprune.prune.model.structure import LinearLayer, linear_layers


class Trained(Protocol):
    """What an optimiser takes its steps on.

    Attributes:
        tensors: what it moves.
    """

    tensors: list[Tensor]

    def gradients(self) -> list[Tensor]:
        """What a backward pass has left in the model, taken out of it; some may be missing."""

    def take(self, gradients: Sequence[Tensor]) -> None:
        """Give the tensors these gradients, without those of what is gone."""

    def write(self) -> None:
        """Write the tensors into the model."""


@contextmanager
def all_weights(model: nn.Module, layers: Iterable[LinearLayer] | None = None) -> Iterator[Trained]:
    """Train every weight of the linear layers that is not 0, inside this context.

    Of a model of less than float32 they are kept in float32 beside it.

    Args:
        model: a causal language model.
        layers: of it; None: all.
    """
    layers = linear_layers(model).values() if layers is None else layers
    weights = {id(layer.parameter): layer.parameter for layer in layers}
    with _training(model, list(weights.values())):
        yield _Weights(list(weights.values()))


class _Weights:
    def __init__(self, weights: list[nn.Parameter]) -> None:
        self._weights = weights
        wide = (torch.float32, torch.float64)
        self.tensors: list[Tensor] = [
            one.detach() if one.dtype in wide else one.detach().float() for one in weights
        ]
        self._gone = [one == 0 for one in self.tensors]

    def gradients(self) -> list[Tensor]:
        found = []
        for weight in self._weights:
            gradient, weight.grad = weight.grad, None
            found.append(torch.zeros_like(weight) if gradient is None else gradient)
        return found

    def take(self, gradients: Sequence[Tensor]) -> None:
        for one, gradient, gone in zip(self.tensors, gradients, self._gone, strict=True):
            one.grad = gradient.to(one.dtype).masked_fill_(gone, 0)

    @torch.no_grad()
    def write(self) -> None:
        for weight, one in zip(self._weights, self.tensors, strict=True):
            if one.data_ptr() != weight.data_ptr():
                weight.copy_(one)


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters (LoRA, Hu et al. 2022, arXiv 2106.09685).

    Attributes:
        rank: of the product that is added to a weight.
        alpha: the product is scaled by ``alpha / rank``.
        layers: the layers that have one, by the last parts of their names, as ``q_proj``; empty:
            all. All experts of a list have one or none.
    """

    rank: int = 8
    alpha: float = 16.0
    layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"adapters of rank {self.rank} add nothing: give a rank of 1 or more")

    def check(self, layers: Mapping[str, LinearLayer]) -> None:
        """See that each name is that of a layer.

        Raises:
            UsageError: one is not.
        """
        for name in self.layers:
            if not any(_ends(layer, name) for layer in layers.values()):
                known = sorted({_called(layer).rpartition(".")[2] for layer in layers.values()})
                raise UsageError(f"no layer is called {name!r}: there are {', '.join(known)}")

    def on(self, layer: LinearLayer) -> bool:
        """Whether a layer has one."""
        return not self.layers or any(_ends(layer, name) for name in self.layers)


def _called(layer: LinearLayer) -> str:
    """The name of a layer, or of its list of experts."""
    return layer.parameter_name.removesuffix(".weight")


def _ends(layer: LinearLayer, name: str) -> bool:
    return f".{_called(layer)}".endswith(f".{name}")


@contextmanager
def low_rank(model: nn.Module, adapters: Adapters) -> Iterator[Trained]:
    """Train adapters inside this context; at its end they are merged into the weights.

    A weight is ``mask * (weight + alpha / rank * B A)`` as the model runs, so that it is after
    merging what it was before, and what is 0 stays so.

    Raises:
        UsageError: a name is of no layer.
    """
    places: dict[int, tuple[nn.Module, str]] = {}
    layers = linear_layers(model)
    adapters.check(layers)
    for layer in layers.values():
        if adapters.on(layer):
            places.setdefault(id(layer.parameter), _place(layer))
    draw = torch.Generator().manual_seed(0)
    made: list[tuple[nn.Module, str, list[str]]] = []
    with _training(model, []):
        try:
            factors: list[nn.Parameter] = []
            for module, name in places.values():
                own = _LowRank(getattr(module, name).detach(), adapters, draw)
                order = list(module._parameters)
                parametrize.register_parametrization(module, name, own)
                made.append((module, name, order))
                factors += [own.down, own.up]
            yield _Factors(factors)
        finally:
            for module, name, order in made:
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                for each in order:  # a digest goes by it
                    if each in module._parameters:
                        module._parameters[each] = module._parameters.pop(each)


def _place(layer: LinearLayer) -> tuple[nn.Module, str]:
    """The module that has a layer's parameter, and the parameter's name in it."""
    owner: Any = layer.module
    return (owner.owner, owner.stack) if layer.stacked else (owner, "weight")


class _LowRank(nn.Module):
    """What is added to a weight, or to each of a stack, where it is not 0."""

    def __init__(self, weight: Tensor, adapters: Adapters, draw: torch.Generator) -> None:
        super().__init__()
        *stack, rows, columns = weight.shape
        self.register_buffer("there", weight != 0, persistent=False)
        self._scale = adapters.alpha / adapters.rank
        start = torch.randn(*stack, adapters.rank, columns, generator=draw) / columns**0.5
        self.down = nn.Parameter(start.to(weight.device))
        self.up = nn.Parameter(torch.zeros(*stack, rows, adapters.rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with what was learned."""
        there: Any = self.there
        learned = (self._scale * (self.up @ self.down)).to(weight.dtype)
        return torch.where(there, weight + learned, 0)


class _Factors:
    def __init__(self, factors: list[nn.Parameter]) -> None:
        self.tensors: list[Tensor] = list(factors)

    def gradients(self) -> list[Tensor]:
        return [torch.zeros_like(one) if one.grad is None else one.grad for one in self.tensors]

    def take(self, gradients: Sequence[Tensor]) -> None:
        for one, gradient in zip(self.tensors, gradients, strict=True):
            one.grad = gradient

    def write(self) -> None:
        """They are in the model already."""


@contextmanager
def _training(model: nn.Module, ours: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let gradients flow to these parameters alone inside this context."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    chosen = set(map(id, ours))
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
        yield
    finally:
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
