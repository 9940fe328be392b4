"""Sums over gradients: of layers' weights, and of what layers write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpprune.errors import GppruneError
from gpprune.prune.model.run import listening
from gpprune.prune.model.structure import LinearLayer


class SquaredGradients:
    """Each weight's sum over sequences of its squared gradient, float32 ``[out, in]``.

    A gradient is freed as soon as it is added: at the peak one parameter's is alive, not the
    model's.
    """

    backward: ClassVar[bool] = True

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        self._layers = dict(layers)
        self._parameters = {id(layer.parameter): layer.parameter for layer in layers.values()}
        self._sums = {
            key: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
            for key, parameter in self._parameters.items()
        }

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Let gradients flow to the layers' weights alone inside this context."""
        before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(False)
                parameter.grad = None
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            with listening(map(self._listen, self._parameters)):
                yield
        finally:
            for parameter, needed, gradient in before:
                parameter.requires_grad_(needed)
                parameter.grad = gradient

    def _listen(self, key: int) -> RemovableHandle:
        parameter: Any = self._parameters[key]  # the method is untyped in torch
        hook: RemovableHandle = parameter.register_post_accumulate_grad_hook(self._hook(key))
        return hook

    def _hook(self, key: int) -> Callable[[Tensor], None]:
        total = self._sums[key]

        def hook(parameter: Tensor) -> None:
            gradient = parameter.grad
            parameter.grad = None
            if gradient is not None:
                gradient = gradient.float()
                total.addcmul_(gradient, gradient)

        return hook

    def reached(self, name: str) -> bool:
        """Always: a weight without influence on the loss has a gradient, which is 0."""
        return True

    def key(self, name: str) -> Hashable:
        """Of each layer its own."""
        return name

    def held(self, name: str) -> Tensor:
        """The sum of a layer, ``[out, in]``; it is handed over, and not kept here."""
        layer = self._layers.pop(name)
        key, found = id(layer.parameter), self._sums[id(layer.parameter)]
        if all(id(other.parameter) != key for other in self._layers.values()):
            del self._sums[key]
        return layer.oriented(layer.part(found))


class Gradients(ABC):
    """Gathers from the loss gradient at what layers write: the base of such accumulators.

    The gradient is that of a sequence's mean next-token loss: the summed loss's is length - 1
    times as large. No weight's gradient is made for it.

    A class of one's own says in `of` what one call of a layer adds to its sum.
    """

    backward: ClassVar[bool] = True
    zero_unreached: ClassVar[bool] = True

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        self.layers = dict(layers)
        self._called: set[str] = set()
        self._sums: dict[str, Tensor] = {}

    @abstractmethod
    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """What one call of a layer adds, in memory of its own.

        Args:
            name: the layer's.
            inputs: ``[tokens, in]`` in the model's dtype.
            gradients: ``[tokens, out]`` in the model's dtype.
        """

    def shape(self, layer: LinearLayer) -> tuple[int, ...]:
        """The shape of what is summed of a layer; by default ``[out, out]``."""
        return (layer.out_features, layer.out_features)

    def reached(self, name: str) -> bool:
        """Whether the layer was ever called, which need not have moved the loss."""
        return name in self._called

    def key(self, name: str) -> Hashable:
        """Of each layer its own."""
        return name

    def held(self, name: str) -> Tensor:
        """The sum of a layer in float64; it is handed over, and not kept here."""
        layer = self.layers[name]
        found = self._sums.pop(name, None)
        if found is None:
            return torch.zeros(self.shape(layer), dtype=torch.float64, device=layer.weight.device)
        return found.double()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Gather from every backward pass through the layers inside this context."""
        layers = self.layers.items()
        with listening(
            layer.module.register_forward_hook(self._hook(name)) for name, layer in layers
        ):
            yield

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            self._called.add(name)
            if not torch.is_grad_enabled():
                return None
            watched = output
            if not output.requires_grad:
                # Nothing before the layer takes a gradient, so its output is where one begins. A
                # clone, for the model may write into it, which it may not do to a leaf.
                watched = output.detach().requires_grad_().clone()
            watched.register_hook(self._adder(name, inputs[0].detach()))  # type: ignore[no-untyped-call]
            return None if watched is output else watched

        return hook

    def _adder(self, name: str, inputs: Tensor) -> Callable[[Tensor], None]:
        version = inputs._version

        @torch.no_grad()
        def add(gradient: Tensor) -> None:
            if inputs._version != version:
                raise GppruneError(
                    f"the model writes into the input of {name!r} after the layer has read it, so "
                    "what its gradients go with is lost: use statistics without a backward pass"
                )
            found = self.of(name, inputs.flatten(0, -2), gradient.flatten(0, -2))
            if name in self._sums:
                self._sums[name] += found
            else:
                self._sums[name] = found

        return add


class GradientSquares(Gradients):
    """Each output neuron's sum of squared gradients over all tokens, float64 ``[out]``."""

    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The squares of one call; a sequence is summed in float32."""
        return gradients.float().square().sum(0).double()

    def shape(self, layer: LinearLayer) -> tuple[int, ...]:
        """A vector."""
        return (layer.out_features,)


class GradientGrams(Gradients):
    """Sums over all tokens of the products of output neurons' gradients, float32 ``[out, out]``."""

    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The Gram matrix of one call."""
        g = gradients.float()
        return g.t() @ g


class Products(Gradients):
    """Each weight's sum over sequences of its gradient, float32 ``[out, in]``."""

    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The products of one call's gradients and inputs, float32."""
        return gradients.float().t() @ inputs.float()

    def shape(self, layer: LinearLayer) -> tuple[int, ...]:
        """A matrix."""
        return (layer.out_features, layer.in_features)


class SquaredProducts(Products):
    """Each weight's sum over all tokens of the square of its token's gradient, ``[out, in]``.

    A token's gradient of a weight is the product of the gradient at its output and of its input.
    """

    def of(self, name: str, inputs: Tensor, gradients: Tensor) -> Tensor:
        """The products of one call's squares, float32."""
        return gradients.float().square().t() @ inputs.float().square()
