"""What the commands print: tables to standard output, progress to standard error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich import box, markup
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table

from gpprune.errors import GppruneError
from gpprune.evals import ShownTable
from gpprune.journal import as_json
from gpprune.progress import Progress
from gpprune.prune import Coverage

out = Console(soft_wrap=True)
err = Console(stderr=True)

# What moves the cursor or colours a terminal: a run's texts may come from anywhere.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def clean(text: str) -> str:
    """A text without control characters, which are shown as what they are."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def escape(text: str) -> str:
    """A text that rich prints as it stands, without control characters."""
    return markup.escape(clean(text))


def say(text: str) -> None:
    """A line to standard output, as it stands."""
    print(clean(text))


def tell(text: str) -> None:
    """A line to standard error, as it stands."""
    err.print(escape(text), highlight=False, soft_wrap=True)


def tell_left_alone(coverage: Coverage) -> None:
    """A line on what of a model is not pruned, if anything."""
    if coverage.left:
        tell(coverage.sentence)


def tell_written(pictures: Sequence[Path]) -> None:
    """The paths of pictures that were written, a line each."""
    for picture in pictures:
        say(str(picture))


def print_json(document: Any) -> None:
    """One JSON document, and nothing else, on standard output; NaN and infinity are null."""
    sys.stdout.write(as_json(document))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    numbers: Sequence[str] = (),
    lines: bool = True,
) -> None:
    """Print a table.

    Args:
        columns: their titles.
        rows: a text a column.
        title: above the table.
        numbers: the titles of columns that are set to the right and never wrapped.
        lines: whether lines are drawn between columns; without, many narrow ones fit.
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


def print_shown(found: ShownTable) -> None:
    """Print a table as `gpprune.discover` makes it."""
    title, columns, rows, numbers = found
    print_table(columns, rows, title=title, numbers=numbers)


class LabelledBars:
    """One moving bar a label, on standard error."""

    def __init__(self) -> None:
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}

    def __call__(self, label: str, done: int, total: int) -> None:
        """Show where some work is; a bar goes when its work is done."""
        if label not in self._tasks:
            self._tasks[label] = self.bars.add_task(label, total=total)
        self.bars.update(self._tasks[label], completed=done, total=total)
        if done >= total:
            self.bars.remove_task(self._tasks.pop(label))


@contextmanager
def going_on(how: Callable[[], str | None]) -> Iterator[None]:
    """Say how to go on, if work is broken off that keeps what it has.

    Args:
        how: what to say, asked when it is broken off; None: nothing is kept.
    """
    try:
        yield
    except GppruneError:
        raise
    except BaseException:
        if (said := how()) is not None:
            tell(said)
        raise


def going_on_from(
    kept: Path, has: Callable[[Path], bool], what: str
) -> AbstractContextManager[None]:
    """As `going_on`, of what a directory keeps until the same command is done.

    Args:
        kept: the directory.
        has: whether anything is kept there.
        what: is kept, with its verb.
    """
    said = f"{what} kept in {kept}: the same command goes on"
    return going_on(lambda: said if has(kept) else None)


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress that shows one bar a label while the block runs."""
    shown_bars = LabelledBars()
    with shown_bars.bars:
        yield shown_bars
