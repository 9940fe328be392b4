"""A run's database: candidates, a row as soon as one is judged, and complete generations."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.outcome import Outcome
from gpprune.gp.rundir.columns import INSERT, complete, outcome_of, row_of, select
from gpprune.gp.rundir.connection import connect
from gpprune.gp.rundir.settingsfile import FORMAT
from gpprune.gp.rundir.trouble import reported
from gpprune.gp.state import State
from gpprune.primitives import Language, text_digest

_SCHEMA = f"""
PRAGMA user_version = {FORMAT};
CREATE TABLE candidates (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    text TEXT NOT NULL,
    fitness REAL,           -- NULL if it failed
    losses TEXT NOT NULL,   -- JSON array, one number a case judged
    complete INTEGER NOT NULL,
    reason TEXT,
    seconds REAL NOT NULL,
    estimate REAL,          -- the fitness's, before any case; NULL if there is none
    origin TEXT NOT NULL,
    parents TEXT NOT NULL,  -- JSON array of keys
    generation INTEGER NOT NULL,
    behaviour TEXT          -- its fingerprint, if the search takes them
);
CREATE TABLE problem (
    digest TEXT NOT NULL    -- of the [problem] in settings.toml
);
CREATE TABLE generations (
    generation INTEGER PRIMARY KEY,
    state TEXT NOT NULL     -- JSON object: population (keys, best first), archive_hits
);
"""


class Database:
    """One file. It is opened when needed; where it may not be written, it can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    @staticmethod
    def create(path: Path, problem: str) -> None:
        """Make the file.

        Args:
            path: where there is none.
            problem: the digest of the problem that candidates are judged on.

        Raises:
            sqlite3.Error: it cannot be written.
        """
        connection = sqlite3.connect(path)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            with connection:
                connection.execute("INSERT INTO problem (digest) VALUES (?)", (problem,))
        finally:
            connection.close()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def check(self) -> None:
        """Read all that there is.

        Raises:
            UsageError: it is of another format version.
            GppruneError: it is damaged, or cannot be read.
        """
        if not self.path.is_file():
            raise GppruneError(f"{self.path} is missing: the run cannot be read without it")
        with self._reading() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                raise sqlite3.DatabaseError("it is empty or damaged")
            if version != FORMAT:
                raise UsageError(
                    f"{self.path} is of format {version}, but this gpprune reads format {FORMAT}:"
                    " use the version that made it"
                )
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(str(found).split()))
            known = {outcome.key for outcome in self.outcomes()}
            for number, state in enumerate(self.states(), start=1):
                if state.generation != number:
                    raise ValueError(f"generation {number - 1} is not there, but later ones are")
                if not known.issuperset(state.population):
                    raise ValueError("a generation names a candidate that is not there")

    def problem(self) -> str:
        """The digest of the problem that candidates were judged on."""
        with self._reading() as connection:
            (digest,) = connection.execute("SELECT digest FROM problem").fetchone()
            return str(digest)

    def outcomes(self, language: Language | None = None) -> list[Outcome]:
        """All candidates, in the order they were judged.

        Args:
            language: what their texts are of; where it is given, each must match its key.

        Raises:
            GppruneError: a row is damaged, or its text does not match its key.
        """
        with self._reading() as connection:
            outcomes = [outcome_of(row) for row in connection.execute(select(connection))]
            for number, outcome in enumerate(outcomes, start=1):
                if language is not None:
                    _check_key(number, outcome, language)
            return outcomes

    def states(self) -> list[State]:
        """The state after each complete generation, in order."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT generation, state FROM generations ORDER BY generation"
            )
            return [_state(generation, text) for generation, text in rows]

    def record(self, outcome: Outcome) -> None:
        """Commit one judged candidate."""
        with self._writing() as transaction:
            complete(transaction)
            transaction.execute(INSERT, row_of(outcome))

    def commit(self, state: State) -> None:
        """Commit a complete generation: the state to go on from."""
        text = json.dumps({"population": state.population, "archive_hits": state.archive_hits})
        with self._writing() as transaction:
            transaction.execute(
                "INSERT INTO generations (generation, state) VALUES (?, ?)",
                (state.generation - 1, text),
            )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with reported(self.path):
            if self._connection is None:
                self._connection = connect(self.path)
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection, connection:
            yield connection


def _check_key(number: int, outcome: Outcome, language: Language) -> None:
    key = text_digest(outcome.text, language)
    if key != outcome.key:
        raise ValueError(
            f"row {number} of its candidates has the key {outcome.key}, but its text,"
            f" {outcome.text!r}, has the key {key}"
        )


def _state(generation: int, text: str) -> State:
    content = json.loads(text)
    return State(generation + 1, tuple(content["population"]), int(content["archive_hits"]))
