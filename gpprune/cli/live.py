"""Live progress of a search, on standard error."""

from __future__ import annotations

import math
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gpprune.cli.console import err, escape
from gpprune.compile import render
from gpprune.gp import Outcome, SearchEvent, SearchSettings
from gpprune.primitives import Language, parse

_FEW = 3


class SearchProgress:
    """An observer for `gpprune.gp.evolve`: one moving line, and one that stays a generation."""

    def __init__(self, settings: SearchSettings, language: Language) -> None:
        self.settings = settings
        self.language = language
        self.bars = Progress(
            TextColumn("generation {task.fields[generation]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]} left"),
            console=err,
            transient=True,
        )
        self.task = self.bars.add_task("", total=None, generation="", told="", left="?")
        self.first: SearchEvent | None = None
        self.last: SearchEvent | None = None
        self.told: SearchEvent | None = None

    def __enter__(self) -> SearchProgress:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.last is not None and self.last.index == self.last.total:
            self._generation_done(self.last)
        self.bars.stop()

    def __call__(self, event: SearchEvent) -> None:
        """Show where the search is."""
        self.first = self.first or event
        last = self.last
        if last is not None and event.generation != last.generation:
            improved = self.told is None or last.best is not self.told.best
            # with an offspring or two a generation, a line each would be hundreds
            if improved or self.settings.offspring > _FEW:
                self._generation_done(last)
        self.last = event
        to_come = (event.generations - event.generation) * self.settings.offspring
        left = event.total - event.index + to_come
        self.bars.update(
            self.task,
            completed=event.index,
            total=event.total,
            generation=f"{event.generation}/{event.generations}",
            told=self._told(event),
            left=_clock(self._seconds_left(event, left)),
        )

    def _told(self, event: SearchEvent) -> str:
        parts = [
            f"best {perplexity(event.best):.2f}" if event.best else "no result yet",
            f"{self._hourly(event):.0f} candidates/h",
            f"{event.archive_hits} in archive",
            f"{event.dropped} dropped",
            f"{event.failed} failed",
        ]
        return " · ".join(parts)

    def _judged(self, event: SearchEvent) -> int:
        return event.evaluated - (self.first.evaluated if self.first else 0)

    def _hourly(self, event: SearchEvent) -> float:
        return 3600 * self._judged(event) / event.seconds if event.seconds > 0 else 0.0

    def _seconds_left(self, event: SearchEvent, candidates: int) -> float | None:
        judged = self._judged(event)
        if judged == 0:
            return self.settings.time_limit
        left = candidates * event.seconds / judged
        limit = self.settings.time_limit
        return left if limit is None else min(left, max(0.0, limit - event.seconds))

    def _generation_done(self, event: SearchEvent) -> None:
        self.told = event
        best = event.best
        formula = render(parse(best.text, self.language).canonical(None), "line") if best else ""
        err.print(
            f"generation {event.generation}: {self._told(event)}  {escape(formula)}",
            highlight=False,
            soft_wrap=True,
        )


def perplexity(outcome: Outcome) -> float:
    """The perplexity of an outcome whose fitness is in nats a token."""
    return math.exp(min(outcome.fitness, 700.0))


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
