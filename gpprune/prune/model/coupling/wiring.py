"""Which channels of one linear layer reach which channels of another, seen in gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpprune.prune.model.run import body, frozen, listening, quiet_model
from gpprune.prune.model.structure import LinearLayer


@dataclass(frozen=True, order=True)
class Run:
    """Consecutive outputs of a linear layer that reach one input of another.

    Attributes:
        layer: the name of the layer whose outputs they are.
        start: the first of them.
        length: how many they are.
    """

    layer: str
    start: int
    length: int


class Wiring:
    """What reaches the inputs of a model's linear layers without passing through another of them.

    The model is run once. What each linear layer gives is cut off from what it was made of, so
    that a gradient goes back to the nearest layers and no further.

    Args:
        model: a causal language model; it is not changed.
        layers: its linear layers by name.
        embedding: of its tokens.
        tokens: ``[1, length]``, int64. Of two tokens at least, or attention is constant.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LinearLayer],
        embedding: nn.Embedding,
        tokens: Tensor,
    ) -> None:
        self._layers = layers
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._embedded: list[Tensor] = []
        self._generator = torch.Generator(tokens.device).manual_seed(0)
        hooks = self._hooks(embedding)
        with frozen(model), quiet_model(model), torch.enable_grad(), listening(hooks):
            body(model)(input_ids=tokens)

    def _hooks(self, embedding: nn.Embedding) -> Iterator[RemovableHandle]:
        def embed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            self._embedded.append(output.detach().requires_grad_())
            return self._embedded[-1].clone()  # what runs on may write to it

        def cut(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            leaf = self._stirred(output.detach()).requires_grad_()
            if name not in self._inputs:
                self._inputs[name], self._outputs[name] = inputs[0], leaf
            return leaf.clone()

        yield embedding.register_forward_hook(embed)
        for name, layer in self._layers.items():
            yield layer.module.register_forward_hook(
                lambda module, inputs, output, name=name: cut(name, inputs, output)
            )

    def _stirred(self, output: Tensor) -> Tensor:
        """With noise of its own size: channels that pruning has silenced are wired as others."""
        noise = torch.randn(output.shape, generator=self._generator, device=output.device)
        size = float(output.float().square().mean().sqrt()) or 1.0
        return output + (size * noise).to(output.dtype)

    def called(self, layer: LinearLayer) -> bool:
        """Whether any token came to a layer: to an expert, none may."""
        return layer.name in self._inputs

    @torch.enable_grad()  # type: ignore[misc, unused-ignore]
    def runs(self, layer: LinearLayer, channel: int) -> list[Run] | None:
        """What reaches one input of a layer.

        Args:
            layer: one that was called.
            channel: which of its inputs.

        Returns:
            Runs of outputs of layers in the same block, in order; None where the embedding
            reaches it, as by the residual stream.
        """
        read = self._inputs[layer.name]
        if not read.requires_grad:
            return []
        own = {
            name: leaf
            for name, leaf in self._outputs.items()
            if self._layers[name].block == layer.block
        }
        weights = torch.rand(read.shape[:-1], generator=self._generator, device=read.device) + 0.5
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            (weights.to(read.dtype) * read[..., channel]).sum(),
            [*self._embedded, *own.values()],
            retain_graph=True,
            allow_unused=True,
        )
        embedded, reached = found[: len(self._embedded)], found[len(self._embedded) :]
        if any(gradient is not None for gradient in embedded):
            return None
        return sorted(
            run
            for name, gradient in zip(own, reached, strict=True)
            if gradient is not None
            for run in _runs(name, gradient)
        )


def _runs(name: str, gradient: Tensor) -> Iterator[Run]:
    """The channels of a layer that a gradient is not zero at."""
    touched = gradient.flatten(0, -2).ne(0).any(0).nonzero().flatten()
    if not len(touched):
        return
    breaks = touched.diff().ne(1).nonzero().flatten() + 1
    for part in touched.tensor_split(breaks.tolist()):
        yield Run(name, int(part[0]), len(part))
