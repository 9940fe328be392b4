"""Allocations that are learned on a model, where others are formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.primitives import Formula
from gpprune.progress import Progress, silent
from gpprune.prune.allocate.besa import besa_sparsities
from gpprune.prune.model.structure import LinearLayer
from gpprune.prune.select.scores import layer_scores
from gpprune.tables import Table

Learn = Callable[
    [nn.Module, Formula, Tensor, Mapping[str, Mapping[str, Tensor]], float, Progress],
    Mapping[str, float],
]


@dataclass(frozen=True)
class Learned:
    """A learned allocation: an entry of `LEARNED`.

    Attributes:
        name: what recipes and the command line call it.
        about: what it does in a line, with its source.
        learn: called as ``learn(model, metric, tokens, statistics, target, progress)`` with the
            dense model, the metric, calibration tokens ``[samples, length]``, the statistics of
            each layer by name, the share of all weights to prune and a progress. It
            returns each layer's sparsity by the layer's name, which the budget then brings to the
            target, and leaves the model as it was.
        reads: the statistics that it asks for beside those of the metric, by name.
    """

    name: str
    about: str
    learn: Learn
    reads: frozenset[str] = frozenset()


def besa(
    model: nn.Module,
    metric: Formula,
    tokens: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    target: float,
    progress: Progress = silent,
) -> dict[str, float]:
    """BESA's learned sparsities by layer name, under a metric; see `besa_sparsities`.

    Args:
        model: dense; it is left as it was.
        metric: whose lowest scores go.
        tokens: ``[samples, length]``, int64.
        statistics: of each layer by name, by layer name: those that the metric reads.
        target: every block's share of pruned weights, in ``[0, 1)``.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError: a statistic that the metric reads is missing; else as `besa_sparsities`.
        GppruneError: as `besa_sparsities`.
    """
    score = kernel(metric)

    def scores(layer: LinearLayer) -> Tensor:
        return layer_scores(score, layer.weight, statistics.get(layer.name))

    return besa_sparsities(model, scores, tokens, target, progress=progress)


LEARNED: Table[Learned] = Table(
    "learned allocation",
    (
        Learned(
            "besa",
            "each layer's sparsity, trained on the reconstruction of its block: BESA, Xu et al. "
            "2024, arXiv 2402.16880",
            besa,
        ),
    ),
)
"""The allocations that are learned."""
