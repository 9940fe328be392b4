"""Sums over the gradients of layers' weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpprune.prune.model.structure import LinearLayer


class SquaredGradients:
    """Each weight's sum over sequences of its squared gradient, float32 ``[out, in]``.

    A gradient is freed as soon as it is added: at the peak one layer's is alive, not the model's.
    """

    backward: ClassVar[bool] = True

    def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
        self._layers = dict(layers)
        self._sums = {
            name: torch.zeros_like(layer.parameter, dtype=torch.float32, requires_grad=False)
            for name, layer in self._layers.items()
        }

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Let gradients flow to the layers' weights alone inside this context."""
        before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        handles: list[RemovableHandle] = []
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(False)
                parameter.grad = None
            for name, layer in self._layers.items():
                layer.parameter.requires_grad_(True)
                listen: Any = layer.parameter.register_post_accumulate_grad_hook  # untyped in torch
                handles.append(listen(self._hook(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, needed, gradient in before:
                parameter.requires_grad_(needed)
                parameter.grad = gradient

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        total = self._sums[name]

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
        return self._layers[name].oriented(self._sums.pop(name))
