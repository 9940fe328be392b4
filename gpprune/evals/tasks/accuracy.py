"""What marks say: accuracy with its error, chance, and differences document by document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.evals.tasks.harness import Marks
from gpprune.evals.tasks.table import ACCURACY

SIGNAL = 2.0
"""How many standard errors of guessing lie between chance and what tells of anything."""


@dataclass(frozen=True)
class Mean:
    """A mean over documents.

    Attributes:
        mean: of an accuracy in [0, 1], of a difference of two in [-1, 1].
        error: its standard error; NaN of one document.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one value a document."""
        count = len(values)
        mean = sum(values) / count
        if count < 2:
            return cls(mean, math.nan)
        spread = sum((value - mean) ** 2 for value in values) / (count - 1)
        return cls(mean, math.sqrt(spread / count))

    @classmethod
    def unweighted(cls, means: Sequence[Mean]) -> Mean:
        """Of several tasks, however many documents each has."""
        count = len(means)
        error = math.sqrt(sum(each.error**2 for each in means)) / count
        return cls(sum(each.mean for each in means) / count, error)


def accuracy(marks: Marks, figure: str = ACCURACY) -> Mean:
    """How many documents of a task are answered rightly.

    Args:
        marks: of a model.
        figure: one that it has scores of.
    """
    return Mean.of(marks.scores[figure])


def above_chance(marks: Marks, figure: str = ACCURACY) -> bool:
    """Whether an accuracy is more than guessing has, by `SIGNAL` standard errors of guessing."""
    return accuracy(marks, figure).mean - marks.chance > SIGNAL * guessing(marks).error


def guessing(marks: Marks) -> Mean:
    """What guessing has on the documents of a task."""
    share = marks.chance
    return Mean(share, math.sqrt(share * (1 - share) / len(marks.questions)))


def difference(marks: Marks, dense: Marks, figure: str = ACCURACY) -> Mean:
    """How much more of the same documents a model answers rightly than another.

    The error is that of the paired difference: documents that both get right or wrong add none.

    Raises:
        UsageError: they were not asked the same.
    """
    if marks.questions != dense.questions:
        raise UsageError(
            f"two models were asked different documents of {marks.task!r}: judge them in one "
            "command, or with the same rows and seed"
        )
    own, other = marks.scores[figure], dense.scores[figure]
    return Mean.of([a - b for a, b in zip(own, other, strict=True)])
