"""A pattern of whole input features, as a user would add it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gpprune.prune import Pattern, PatternForm, linear_layers


def arrange(scores: Tensor) -> Tensor:
    """One score an input feature, the sum over output neurons; all features compete."""
    return scores.sum(0, keepdim=True)


def restore(chosen: Tensor, shape: Sequence[int]) -> Tensor:
    """A feature goes in every output neuron."""
    return chosen.expand(tuple(shape))


COLUMNS = PatternForm(
    "columns",
    "columns",
    "whole input features go, those with the least sum of scores",
    "columns",
    lambda match: Pattern("columns", None, arrange, restore),
)


def has_whole_columns(model: nn.Module) -> bool:
    """Whether in every layer each column is all zero or has no zero, and there are both kinds."""
    for layer in linear_layers(model).values():
        counts = (layer.weight == 0).sum(0)
        if not ((counts == 0) | (counts == layer.out_features)).all():
            return False
    zeros = [int((layer.weight == 0).sum()) for layer in linear_layers(model).values()]
    return any(zeros) and all(
        zero < layer.weight.numel()
        for zero, layer in zip(zeros, linear_layers(model).values(), strict=True)
    )
