"""The seconds of a search's parts, told from outside so that any version of gpprune can be timed.

What is read of a run is what all versions have in common: when it made its directory, the line
that it prints for each generation, and the seconds and losses of the candidates in its database.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from gpprune.errors import GppruneError

PARTS = ("ready", "search", "judging", "report", "whole")
"""Loading and calibrating; the search; of it, pruning and judging; winners on test text; all."""

_GENERATION = re.compile(r"generation \d+: ")


@dataclass(frozen=True)
class Timed:
    """One run.

    Attributes:
        seconds: by the names of `PARTS`.
        judged: of each candidate, in order: its text, and its loss with six digits.
    """

    seconds: Mapping[str, float]
    judged: tuple[tuple[str, str], ...]


def timed(command: Sequence[str], environment: Mapping[str, str], folder: Path, run: Path) -> Timed:
    """Run a search, and time its parts.

    Args:
        command: what makes the run directory.
        environment: of the process.
        folder: where it runs.
        run: the directory that it makes.

    Raises:
        GppruneError: it failed, or said nothing of its generations.
    """
    start = time.time()
    searched, said = None, []
    with subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stderr or ():
            said.append(line)
            if _GENERATION.match(line):
                searched = time.time()
    end = time.time()
    if process.returncode or searched is None:
        raise GppruneError(
            f"in {folder} the search ended with {process.returncode}: {''.join(said)[-2000:]}"
        )
    made = (run / "settings.toml").stat().st_mtime
    rows = _rows(run / "run.db")
    parts = (made - start, searched - made, sum(row[2] for row in rows), end - searched)
    seconds = dict(zip(PARTS, (*parts, end - start), strict=True))
    return Timed(seconds, tuple((text, f"{fitness:.6g}") for text, fitness, _ in rows))


def _rows(database: Path) -> list[tuple[str, float, float]]:
    """Text, mean loss (infinite where it failed) and seconds of each candidate."""
    query = "SELECT text, ifnull(fitness, 9e999), seconds FROM candidates ORDER BY number"
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()
