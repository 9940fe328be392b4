"""A layer's scores under a compiled metric."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.measure.statistics import LayerStatistics


class ScoreKernel(Protocol):
    """A compiled metric, as :func:`gpprune.compile.kernel` returns it."""

    @property
    def terminals(self) -> frozenset[str]:
        """The terminals it reads, among W, X, Y, G and D."""

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """The scores, ``[out, in]``."""


def layer_scores(
    score: ScoreKernel,
    weight: Tensor,
    statistics: LayerStatistics | None,
    out: Tensor | None = None,
) -> Tensor:
    """A layer's scores.

    Args:
        score: the compiled metric.
        weight: ``[out, in]``, any floating dtype.
        statistics: what calibration measured; may be None if the metric reads only W.
        out: a prepared float32 buffer ``[out, in]``, which saves fresh memory for each layer.

    Returns:
        Scores ``[out, in]``; ``out`` itself if it was given and the kernel could use it.

    Raises:
        UsageError: the metric reads a statistic that was not measured.
    """
    terminals = {"W": weight}
    if statistics is not None:
        terminals |= {"X": statistics.X, "Y": statistics.Y}
        if statistics.G is not None:
            terminals["G"] = statistics.G
        if statistics.D is not None:
            terminals["D"] = statistics.D
    if missing := sorted(score.terminals - terminals.keys()):
        raise UsageError(
            f"the metric reads {', '.join(missing)}, which was not measured: calibrate first, "
            "with gradients=True for G and hessians=True for D"
        )
    return score(out=out, **terminals)
