"""Who judges candidates: one after another here, or several workers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from gpprune.gp.fidelity import race
from gpprune.gp.fitness import Fitness
from gpprune.gp.outcome import Candidate, Verdict
from gpprune.gp.paired import Bar
from gpprune.gp.screen import Screen
from gpprune.gp.settings import SearchSettings
from gpprune.primitives import Formula, Language


@dataclass(frozen=True)
class Terms:
    """What candidates are judged by, fixed before the first of them: their order does not matter.

    Attributes:
        bars: what to keep up with, that of the fewest nodes first; a formula that is shorter than
            all of them ask for is judged on all cases.
        screen: what estimates foretell; None: nothing.
        first_rung: cases that every candidate is judged on; None: those of the settings.
    """

    bars: tuple[Bar, ...] = ()
    screen: Screen | None = None
    first_rung: int | None = None

    def verdict(self, fitness: Fitness, formula: Formula, settings: SearchSettings) -> Verdict:
        """Judge a formula by them, see `race`."""
        under = [bar for bar in self.bars if bar.size <= formula.complexity]
        bar = under[-1] if under else None
        return race(fitness, formula, settings, bar, self.screen, self.first_rung)


@dataclass(frozen=True)
class Task:
    """A candidate that awaits its verdict."""

    candidate: Candidate
    terms: Terms


Tasks = Iterator[Task | None]
"""What is to be judged, in order. None: what comes next follows from verdicts that are to come."""


class Judge(Protocol):
    """Judges candidates."""

    def judge(self, tasks: Tasks, go_on: Callable[[], bool]) -> Iterator[Verdict]:
        """Verdicts in the order of the tasks; fewer, once `go_on` says no.

        A task is asked for when there is somebody to judge it. Whoever takes the verdicts has
        told the tasks of each before it takes the next.
        """
        ...

    def close(self) -> None:
        """End what it has begun."""
        ...


class InTurn:
    """One candidate after another, in this process."""

    def __init__(self, fitness: Fitness, language: Language, settings: SearchSettings) -> None:
        self._fitness, self._language, self._settings = fitness, language, settings

    def judge(self, tasks: Tasks, go_on: Callable[[], bool]) -> Iterator[Verdict]:
        """See `Judge`."""
        while go_on() and (task := next(tasks, None)) is not None:
            formula = task.candidate.parsed(self._language)
            yield task.terms.verdict(self._fitness, formula, self._settings)

    def close(self) -> None:
        """Nothing was begun."""
