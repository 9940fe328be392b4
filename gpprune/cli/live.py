"""Live progress of a search, on standard error: a moving line, and one that stays a generation."""

from __future__ import annotations

from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from gpprune.cli.console import LabelledBars, err, escape
from gpprune.compile import render
from gpprune.discover.watch.pace import Pace
from gpprune.evals import LOSSES, shown
from gpprune.gp import SearchEvent, SearchSettings
from gpprune.primitives import Language

_FEW = 3


class SearchScreen:
    """The progress and the observer of `gpprune.discover`, one display at a time."""

    def __init__(self, language: Language, loss: str, settings: SearchSettings) -> None:
        self._language = language
        self._settings = settings
        self._loss = LOSSES.find(loss)
        self._labelled = LabelledBars()
        self._searching = Bars(
            TextColumn("generation {task.fields[generation]}", table_column=_whole()),
            BarColumn(bar_width=10, table_column=_whole()),
            MofNCompleteColumn(table_column=_whole()),
            TextColumn(
                "{task.fields[told]}",
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            TimeElapsedColumn(table_column=_whole()),
            TextColumn("{task.fields[left]} left", table_column=_whole()),
            console=err,
            transient=True,
            expand=True,
        )
        self._task = self._searching.add_task("", total=None, generation="", told="", left="?")
        self._on: Bars | None = None
        self._pace = Pace(settings)
        self._last: SearchEvent | None = None
        self._told_last: SearchEvent | None = None

    def __enter__(self) -> SearchScreen:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show(None)

    def progress(self, label: str, done: int, total: int) -> None:
        """Show a bar, before and after the search."""
        if self._on is self._searching:
            self._finish()
        self._show(self._labelled.bars)
        self._labelled(label, done, total)

    def observe(self, event: SearchEvent) -> None:
        """Show where the search is."""
        self._show(self._searching)
        self._pace.see(event)
        last = self._last
        if last is not None and event.generation != last.generation:
            improved = self._told_last is None or last.best is not self._told_last.best
            # with an offspring or two a generation, a line each would be hundreds
            if improved or self._settings.offspring > _FEW:
                self._generation_done(last)
        self._last = event
        self._searching.update(
            self._task,
            completed=event.index,
            total=event.total,
            generation=f"{event.generation}/{event.generations}",
            told=self._told(event),
            left=_clock(self._pace.seconds_left(event)),
        )

    def _show(self, display: Bars | None) -> None:
        """Have this display on, and no other: a terminal has room for one."""
        if self._on is display:
            return
        if self._on is not None:
            self._on.stop()
        self._on = display
        if display is not None:
            display.start()

    def _finish(self) -> None:
        """The last generation's line, if it was complete."""
        if self._last is not None and self._last.index == self._last.total:
            self._generation_done(self._last)
        self._last = None

    def _told(self, event: SearchEvent) -> str:
        best = "no result yet"
        if event.best:
            best = f"best {shown(self._loss.shown(event.best.fitness))} {self._loss.figure}"
        parts = [
            best,
            f"{self._pace.hourly(event):.0f} candidates/h",
            f"{event.archive_hits} archive hits",
            f"{event.dropped} dropped",
            f"{event.failed} failed",
        ]
        return " · ".join(parts)

    def _generation_done(self, event: SearchEvent) -> None:
        self._told_last = event
        best = event.best
        formula = render(best.parsed(self._language).canonical(None), "line") if best else ""
        err.print(
            f"generation {event.generation}: {self._told(event)}  {escape(formula)}",
            highlight=False,
            soft_wrap=True,
        )


def _whole() -> Column:
    """A column that a narrow terminal does not cut; what is told gives way."""
    return Column(no_wrap=True)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
