"""What benchmarks print: tables to standard output, a bar to standard error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from gpprune.progress import Progress


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table; all columns but the first are set to the right.

    Args:
        columns: their titles.
        rows: a text a column.
        title: above the table.
    """
    table = Table(title=title and escape(title), title_justify="left", header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left", no_wrap=at > 0, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress that shows one bar a label while the block runs."""
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def report(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done, total=total)
        if done >= total:
            bars.remove_task(tasks.pop(label))

    with bars:
        yield report
