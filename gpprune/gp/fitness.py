"""What a search asks of the thing it improves: a loss for each of a number of paired cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from gpprune.errors import Unfit
from gpprune.primitives import Formula

__all__ = ["Fitness", "FunctionFitness", "Mixed", "Screened", "Trial", "Unfit"]


class Trial(Protocol):
    """A prepared candidate, ready to be judged case by case."""

    def __call__(self, start: int, stop: int) -> Sequence[float]:
        """Return the loss of each case in `[start, stop)`; lower is better."""
        ...


class Fitness(Protocol):
    """Judges formulas on `cases` paired cases (text windows, data points), the same for all.

    `prepare` or the trial raise `Unfit` for a formula that cannot be judged; its message is
    recorded as the reason. Any other ordinary exception is recorded the same way, under its
    name. One that says that memory ran out ends the search, and nothing is recorded of the
    formula. One trial is finished before the next formula is prepared.
    """

    @property
    def cases(self) -> int:
        """How many cases there are, at least 1."""
        ...

    def prepare(self, formula: Formula) -> Trial:
        """Do once what all cases of one formula share, such as pruning the model by it."""
        ...


@runtime_checkable
class Screened(Protocol):
    """A fitness that can also estimate, far more cheaply than it judges a case, how a formula does.

    The estimate is positive and lower is better; it need not be on the scale of the loss. A search
    learns what it is worth from the candidates that were judged on all cases.
    """

    def estimate(self, formula: Formula) -> float | None:
        """The estimate of a formula; None where there is none.

        Raises:
            Unfit: the formula cannot be judged.
        """
        ...


@runtime_checkable
class Mixed(Protocol):
    """A fitness whose cases are of several kinds in turns, such as windows of several texts."""

    @property
    def kinds(self) -> int:
        """How many: on fewer cases no formula is dropped, which one kind alone would decide."""
        ...


class FunctionFitness:
    """A fitness of one case from a plain function of the formula; lower is better."""

    cases: int = 1

    def __init__(self, function: Callable[[Formula], float]) -> None:
        self._function = function

    def prepare(self, formula: Formula) -> Trial:
        """Return a trial that calls the function."""

        def trial(start: int, stop: int) -> Sequence[float]:
            return [self._function(formula)] if start < stop else []

        return trial
