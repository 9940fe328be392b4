"""Run a model on text: without its head, quietly, and with the loss of its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


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
