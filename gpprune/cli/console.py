"""What the commands print: tables to standard output, progress to standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape as escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(soft_wrap=True)
err = Console(stderr=True)

Report = Callable[[str, int, int], None]


def print_json(document: Any) -> None:
    """One JSON document, and nothing else, on standard output; NaN and infinity are null."""
    sys.stdout.write(json.dumps(_finite(document), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    numbers: Sequence[str] = (),
    lines: bool = True,
) -> None:
    """A table; the columns named in `numbers` are set to the right and never wrapped.

    `lines=False` leaves out what is drawn between columns, for a table of many narrow ones.
    """
    table = Table(
        title=escape(title) if title else None,
        title_justify="left",
        header_style="bold",
        expand=False,
        box=box.HEAVY_HEAD if lines else box.SIMPLE_HEAD,
        padding=(0, 1) if lines else 0,
        collapse_padding=not lines,
    )
    for column in columns:
        number = column in numbers
        table.add_column(
            column, justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


@contextmanager
def progress() -> Iterator[Report]:
    """A reporter `(label, done, total)` that shows one bar a label while the block runs."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
    tasks: dict[str, Any] = {}

    def report(label: str, done: int, total: int) -> None:
        if label not in tasks:
            tasks[label] = bars.add_task(label, total=total)
        bars.update(tasks[label], completed=done, total=total)
        if done >= total:
            bars.remove_task(tasks.pop(label))

    with bars:
        yield report
