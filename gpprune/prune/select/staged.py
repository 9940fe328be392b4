"""Scores of a shot among several: what went before stays out, and a pattern is reached in parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpprune.prune.select.masks import prune_mask
from gpprune.prune.select.pattern import Pattern
from gpprune.prune.select.scores import ScoreKernel


class Lowest:
    """A metric under which all weights have one score, the lowest that is finite.

    So a layer's weights go in their order, and before those of other layers.

    Args:
        score: the metric in whose place it stands.
    """

    def __init__(self, score: ScoreKernel) -> None:
        self._score = score

    @property
    def terminals(self) -> frozenset[str]:
        """The terminals that the metric reads."""
        return self._score.terminals

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """The scores ``[out, in]``, float32."""
        weight = terminals["W"]
        lowest = torch.finfo(torch.float32).min
        return torch.full(weight.shape, lowest, dtype=torch.float32, device=weight.device)


class Holding:
    """A metric under which weights that went before go before all others.

    Args:
        score: the metric.
        held: bool ``[out, in]``, True where a weight went.
    """

    def __init__(self, score: ScoreKernel, held: Tensor) -> None:
        self._score = score
        self._held = held

    @property
    def terminals(self) -> frozenset[str]:
        """The terminals that the metric reads."""
        return self._score.terminals

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """The metric's scores ``[out, in]``, and minus infinity for what went before."""
        scores = self._score(out=out, **terminals)
        lowest = torch.finfo(scores.dtype).min  # a metric's own minus infinity is no tie
        return scores.clamp(min=lowest).masked_fill(self._held.to(scores.device), -math.inf)


class Within:
    """A metric under which only those weights go that a pattern would take in the end.

    A pattern that fixes its sparsity, such as 2:4, is so reached in parts: of the weights that go
    in the end those with the lowest scores of the layer go first.

    Args:
        score: the metric.
        pattern: it implies its own sparsity.
    """

    def __init__(self, score: ScoreKernel, pattern: Pattern) -> None:
        self._score = score
        self._pattern = pattern

    @property
    def terminals(self) -> frozenset[str]:
        """The terminals that the metric reads."""
        return self._score.terminals

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """The metric's scores ``[out, in]``, and infinity for what stays in the end."""
        scores = self._score(out=out, **terminals)
        highest = torch.finfo(scores.dtype).max  # a metric's own infinity is no tie
        stays = ~prune_mask(scores, None, self._pattern)
        return scores.clamp(max=highest).masked_fill(stays, math.inf)
