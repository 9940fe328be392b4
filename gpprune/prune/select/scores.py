"""A layer's scores under a compiled metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from gpprune.errors import UsageError


class ScoreKernel(Protocol):
    """A compiled metric, as :func:`gpprune.compile.kernel` returns it."""

    @property
    def terminals(self) -> frozenset[str]:
        """The terminals it reads: W and statistics."""

    def __call__(self, *, out: Tensor | None = None, **terminals: Tensor) -> Tensor:
        """The scores, ``[out, in]``."""


def layer_scores(
    score: ScoreKernel,
    weight: Tensor,
    statistics: Mapping[str, Tensor] | None,
    out: Tensor | None = None,
) -> Tensor:
    """A layer's scores.

    Args:
        score: the compiled metric.
        weight: ``[out, in]``, any floating dtype.
        statistics: what calibration measured, by name; None if the metric reads only W.
        out: a prepared float32 buffer ``[out, in]``, which saves fresh memory for each layer.

    Returns:
        Scores ``[out, in]``; ``out`` itself if it was given and the kernel could use it.

    Raises:
        UsageError: the metric reads a statistic that was not measured.
    """
    given = {**(statistics or {}), "W": weight}
    if missing := sorted(score.terminals - given.keys()):
        names = ", ".join(missing)
        raise UsageError(
            f"the metric reads {names}, which was not measured: calibrate first, naming {names}"
        )
    return score(out=out, **{name: given[name] for name in score.terminals | {"W"}})
