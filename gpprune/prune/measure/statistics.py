"""What calibration measures of each linear layer: norms, gradients, inverse Hessians."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpprune.errors import UsageError
from gpprune.prune.measure.hessians import gram_matrix, inverse_diagonal
from gpprune.prune.model.structure import LinearLayer, check_weights, linear_layers

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What calibration measured of one linear layer, as float32.

    Attributes:
        X: ``[in]``, each input feature's norm: the root of the mean over calibration sequences
            of its sum of squares over tokens (Wanda, Sun et al. 2023, as its code scales it).
        Y: ``[out]``, the same of each output neuron.
        G: ``[out, in]``, each weight's gradient norm: the root of the sum over sequences of the
            squared gradient of the sequence's mean next-token loss; None if not measured.
        D: ``[in]``, positive: the diagonal of the upper Cholesky factor of the inverse of
            SparseGPT's Hessian (Frantar and Alistarh 2023, algorithm 1), see
            :func:`inverse_diagonal`; None if not measured.
    """

    X: Tensor
    Y: Tensor
    G: Tensor | None = None
    D: Tensor | None = None


def check_tokens(tokens: Tensor) -> None:
    """See that calibration tokens are sequences with something to predict.

    Args:
        tokens: ``[samples, length]``, int64.

    Raises:
        UsageError: they are empty or of another shape or kind.
    """
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise UsageError(
            f"calibration tokens are {tokens.dtype} of shape {list(tokens.shape)}: "
            "give int64 [samples, length]"
        )
    if tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise UsageError(
            f"there is nothing to calibrate on in tokens of shape {list(tokens.shape)}: "
            "give at least one sequence of two tokens"
        )


@dataclass(eq=False)
class _Read:
    """The tensor that layers read last, what was measured of it, and the layers."""

    tensor: Tensor
    version: int
    squares: Tensor
    gram: Tensor | None
    readers: list[str] = field(default_factory=list)


class ActivationSums:
    """Sums over layers' inputs and outputs, kept by forward hooks.

    Squares are summed in float64. With ``hessians``, so are the inputs' Gram matrices ``[in, in]``
    in float32, one for all layers that read the same tensors.
    """

    def __init__(self, layers: Iterable[LinearLayer], *, hessians: bool = False) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self._hessians = hessians
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._grams: dict[tuple[str, ...], Tensor] = {}  # by the layers that read a tensor
        self._diagonals: dict[tuple[object, ...], Tensor] = {}
        self._last: _Read | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure whatever flows through the layers inside this context."""
        handles: list[RemovableHandle] = []
        try:
            for layer in self._layers.values():
                handles.append(layer.module.register_forward_hook(self._hook(layer.name)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._settle()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._add(self._inputs, name, self._input_squares(name, inputs[0]))
            self._add(self._outputs, name, _squares(output.detach()))

        return hook

    def _input_squares(self, name: str, x: Tensor) -> Tensor:
        # Query, key and value (gate and up) read one tensor: measure it once.
        last = self._last
        if last is None or last.tensor is not x or last.version != x._version:
            self._settle()
            gram = gram_matrix(x.detach()) if self._hessians else None
            last = self._last = _Read(x, x._version, _squares(x.detach()), gram)
        last.readers.append(name)
        return last.squares

    def _settle(self) -> None:
        """Count the last tensor's Gram matrix to the layers that read it."""
        last, self._last = self._last, None
        if last is None or last.gram is None:
            return
        readers = tuple(last.readers)
        if readers in self._grams:
            self._grams[readers] += last.gram
        else:
            self._grams[readers] = last.gram

    @staticmethod
    def _add(sums: dict[str, Tensor], name: str, squares: Tensor) -> None:
        sums[name] = sums[name] + squares if name in sums else squares

    def statistics(self, name: str, samples: int, gradient: Tensor | None) -> LayerStatistics:
        """What was measured of a layer over ``samples`` sequences, with its G.

        A layer that no token reached (an idle expert) has norms of zero.

        Raises:
            GppruneError: the layer's Hessian cannot be inverted.
        """
        x, y = self._norms(name, samples)
        return LayerStatistics(x, y, gradient, self._diagonal(name, samples))

    def _diagonal(self, name: str, samples: int) -> Tensor | None:
        if not self._hessians:
            return None
        size = self._layers[name].in_features
        read = [(readers, readers.count(name)) for readers in self._grams if name in readers]
        key = (size, *read)  # the same for layers that read the same tensors
        if key not in self._diagonals:
            device = self._layers[name].weight.device
            gram = torch.zeros(size, size, dtype=torch.float64, device=device)
            for readers, times in read:
                gram.add_(self._grams[readers], alpha=times)
            self._diagonals[key] = inverse_diagonal(gram.mul_(2 / samples), name)
        return self._diagonals[key]

    def _norms(self, name: str, samples: int) -> tuple[Tensor, Tensor]:
        """X ``[in]`` and Y ``[out]``, float32."""
        layer = self._layers[name]
        device = layer.weight.device
        squares = (
            self._inputs.get(name, torch.zeros(layer.in_features, device=device)),
            self._outputs.get(name, torch.zeros(layer.out_features, device=device)),
        )
        x, y = ((total / samples).sqrt().float() for total in squares)
        return x, y


def _squares(x: Tensor) -> Tensor:
    """Each feature's sum of squares, float64 ``[features]``.

    One sequence is summed in float32 (torch's sums are pairwise) and sequences in float64: a
    float64 norm along the first dimension takes eighteen times as long, more than the model.
    """
    flat = x.reshape(-1, x.shape[-1]).float()
    return (flat * flat).sum(dim=0).double()


class GradientSums:
    """Sums of squared weight gradients, each gradient freed as soon as it is added."""

    def __init__(self, layers: Iterable[LinearLayer]) -> None:
        self._layers = {layer.name: layer for layer in layers}
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
            parameter.grad = None  # at the peak one layer's gradient is alive, not the model's
            if gradient is not None:
                gradient = gradient.float()
                total.addcmul_(gradient, gradient)

        return hook

    def norms(self, name: str) -> Tensor:
        """G of a layer, ``[out, in]``, float32. Call once: the sums become the norms."""
        return self._layers[name].oriented(self._sums.pop(name).sqrt_()).contiguous()


@contextmanager
def quiet_model(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without a key-value cache, and back afterwards."""
    config = getattr(model, "config", None)
    cached = getattr(config, "use_cache", None)
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        if cached is not None:
            config.use_cache = False  # type: ignore[union-attr]
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        if cached is not None:
            config.use_cache = cached  # type: ignore[union-attr]


def body(model: nn.Module) -> nn.Module:
    """The model without its output head, where it can be told apart."""
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) else model


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token loss in nats of ``logits`` ``[1, length, vocabulary]`` on ``[1, length]``."""
    return nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])


def calibrate(
    model: nn.Module,
    tokens: Tensor,
    gradients: bool = False,
    progress: Progress | None = None,
    *,
    hessians: bool = False,
) -> dict[str, LayerStatistics]:
    """Measure X, Y and, if asked, G and D of every linear layer in one pass over the dense model.

    Args:
        model: a causal language model; its weights, modes and flags are left as they were.
        tokens: ``[samples, length]``, int64; one sequence goes through at a time.
        gradients: whether to measure G, which takes a backward pass of each sequence and as
            much memory as the layers' weights in float32.
        progress: called as ``progress("calibrating", done, samples)``.
        hessians: whether to measure D, which takes a float32 matrix ``[in, in]`` of memory for
            each input that layers read, and about as much time again as the pass.

    Returns:
        Each layer's statistics by the layer's name, in the model's order.

    Raises:
        UsageError: there are no tokens to calibrate on.
        GppruneError: the model has no linear layers in blocks, or a damaged weight, or the inputs
            of a layer have no D.
    """
    check_tokens(tokens)
    layers = linear_layers(model)
    check_weights(layers)
    activations = ActivationSums(layers.values(), hessians=hessians)
    gradient_sums = GradientSums(layers.values()) if gradients else None
    with ExitStack() as stack:
        stack.enter_context(quiet_model(model))
        stack.enter_context(activations.watching())
        stack.enter_context(torch.set_grad_enabled(gradients))
        if gradient_sums is not None:
            stack.enter_context(gradient_sums.watching(model))
        for done, sequence in enumerate(tokens, start=1):
            _measure(model, sequence[None], gradients)
            if progress is not None:
                progress("calibrating", done, len(tokens))
    return {
        name: activations.statistics(
            name, len(tokens), gradient_sums.norms(name) if gradient_sums is not None else None
        )
        for name in layers
    }


def _measure(model: nn.Module, sequence: Tensor, gradients: bool) -> None:
    """Send one sequence ``[1, length]`` through the model, and its loss back if asked."""
    sequence = sequence.to(next(model.parameters()).device)
    if not gradients:
        body(model)(sequence)  # the head's output is not measured
        return
    next_token_loss(model(sequence).logits, sequence).backward()  # type: ignore[no-untyped-call]
