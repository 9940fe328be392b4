"""Outcomes as rows: a column for each field of the record that the database keeps.

A field's column has its name and holds its value, but for those listed here.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gpprune.gp.outcome import Outcome


@dataclass(frozen=True)
class _Column:
    """What a field is called in SQL, and how its values get there and back."""

    name: str
    written: Callable[[Any], Any] = lambda value: value
    read: Callable[[Any], Any] = lambda value: value


_PECULIAR = {
    # SQLite has no infinity that other programs read; NULL says that there is no fitness.
    "fitness": _Column(
        "fitness",
        lambda value: value if math.isfinite(value) else None,
        lambda value: math.inf if value is None else value,
    ),
    "losses": _Column(
        "losses",
        lambda values: json.dumps(values, allow_nan=False),
        lambda text: tuple(float(loss) for loss in json.loads(text)),
    ),
    "full": _Column("complete", int, bool),
    "parents": _Column("parents", json.dumps, lambda text: tuple(json.loads(text))),
}
# What equality does not see is no part of the record: the formula, which the text says.
_COLUMNS = {
    field.name: _PECULIAR.get(field.name, _Column(field.name))
    for field in fields(Outcome)
    if field.compare
}
_NAMES = [column.name for column in _COLUMNS.values()]
# What the table of an earlier run lacks: it is added before a row is, and NULL till then.
_SINCE = {"estimate": "REAL"}

INSERT = f"INSERT INTO candidates ({', '.join(_NAMES)}) VALUES ({', '.join('?' * len(_NAMES))})"


def select(connection: sqlite3.Connection) -> str:
    """The statement that gives all rows, in the order of their numbers."""
    lacking = _lacking(connection)
    names = (f"NULL AS {name}" if name in lacking else name for name in _NAMES)
    return f"SELECT {', '.join(names)} FROM candidates ORDER BY number"


def complete(connection: sqlite3.Connection) -> None:
    """Add the columns that an earlier run lacks."""
    for name in _lacking(connection):
        connection.execute(f"ALTER TABLE candidates ADD COLUMN {name} {_SINCE[name]}")


def _lacking(connection: sqlite3.Connection) -> set[str]:
    found = {name for _, name, *_ in connection.execute("PRAGMA table_info(candidates)")}
    return _SINCE.keys() - found


def row_of(outcome: Outcome) -> list[Any]:
    """The values that `INSERT` takes."""
    return [column.written(getattr(outcome, name)) for name, column in _COLUMNS.items()]


def outcome_of(row: Sequence[Any]) -> Outcome:
    """The outcome in a row that `select` gives.

    Raises:
        TypeError: a value is of another type than it should be.
        ValueError: a value that should be JSON is none.
    """
    values = zip(_COLUMNS.items(), row, strict=True)
    return Outcome(**{name: column.read(value) for (name, column), value in values})
