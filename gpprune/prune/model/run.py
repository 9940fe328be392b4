"""Run a model on text: without its head, quietly, and with the loss of its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def quiet_model(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without a key-value cache, and back afterwards."""
    training = {module: module.training for module in model.modules()}
    caching = _caching(model)
    try:
        model.eval()
        for config, _ in caching:
            config.use_cache = False
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for config, cached in caching:
            config.use_cache = cached


def _caching(model: nn.Module) -> list[tuple[Any, bool]]:
    """The configurations that say whether to keep keys and values, and what they say.

    A language model beside other towers goes by one of its own.
    """
    configs = {id(c): c for module in model.modules() if (c := getattr(module, "config", None))}
    found = ((config, getattr(config, "use_cache", None)) for config in configs.values())
    return [(config, cached) for config, cached in found if cached is not None]


def body(model: nn.Module) -> nn.Module:
    """The model without its output head, where it can be told apart."""
    inner = getattr(model, "base_model", model)
    return inner if isinstance(inner, nn.Module) else model


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean next-token loss in nats of ``logits`` ``[1, length, vocabulary]`` on ``[1, length]``."""
    return nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
