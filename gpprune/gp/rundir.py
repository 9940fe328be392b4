"""A search's directory: its settings, and a database of all that it has found so far.

    settings.toml   [gpprune] format, [search] the settings, [problem] whatever the caller keeps
    run.db          SQLite in WAL mode: candidates, one row as soon as it is judged, and
                    generations, one row each when it is complete
    lock.db         an empty SQLite database that the running search holds locked

A process killed anywhere leaves the rows that were committed, and those are enough to go on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.archive import Outcome
from gpprune.gp.engine import State
from gpprune.gp.settings import SearchSettings
from gpprune.gp.settingsfile import FORMAT, SETTINGS, read_settings, settings_text

_DATABASE = "run.db"
_LOCK = "lock.db"

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


class RunDirectory:
    """One search on disk. Make it with `create` or `open`; close it, or use it in a `with`."""

    def __init__(self, path: Path, search: SearchSettings, problem: dict[str, Any]) -> None:
        self.path = path
        self.search = search
        self.problem = problem
        self._connection: sqlite3.Connection | None = None

    @classmethod
    def create(
        cls, path: Path | str, search: SearchSettings, problem: Mapping[str, Any]
    ) -> RunDirectory:
        """Make a run directory, whole or not at all.

        `problem` is the caller's own record of what is searched: a JSON-like dictionary. TOML
        has no null, so entries that are None are left out.

        Raises `UsageError` if the path exists or the problem cannot be written as TOML, and
        `GppruneError` if the directory cannot be written.
        """
        path = Path(path)
        text = settings_text(search, problem)
        if os.path.lexists(path):
            raise UsageError(f"{path} exists: choose another directory, or resume that run")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                draft.chmod(0o755)
                _fill(draft, text, _digest(problem))
                draft.rename(path)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        except (OSError, sqlite3.Error) as error:
            raise GppruneError(f"cannot make the run directory {path}: {error}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Open an existing run, to read or to resume it. Changes nothing.

        Raises `UsageError` if the path is no run directory or of another format version, and
        `GppruneError` if its files are damaged.
        """
        path = Path(path)
        if not path.is_dir():
            raise UsageError(f"{path} is not a directory: name one that `evolve` has made")
        search, problem = read_settings(path)
        run = cls(path, search, problem)
        try:
            run._check()
        finally:
            run.close()
        return run

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; it is opened again when needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from running this search meanwhile; they may still read it.

        Raises `GppruneError` if another one has it. The lock ends with the process, however it
        ends.
        """
        with _reported(self.path / _LOCK):
            lock = sqlite3.connect(self.path / _LOCK, timeout=0, isolation_level=None)
        try:
            with _reported(self.path / _LOCK):
                self._take(lock)
            yield
        finally:
            lock.close()
            self.close()

    def _take(self, lock: sqlite3.Connection) -> None:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise GppruneError(
                f"the run {self.path} is in use by another process: wait for it or stop it"
            ) from None

    def outcomes(self) -> list[Outcome]:
        """Return all candidates judged so far, in order."""
        with _reported(self.path / _DATABASE):
            rows = self._open().execute(
                "SELECT key, text, fitness, losses, complete, reason, seconds, origin, parents,"
                " generation, behaviour FROM candidates ORDER BY number"
            )
            return [_outcome(row) for row in rows]

    def states(self) -> list[State]:
        """Return the state after each complete generation, in order."""
        with _reported(self.path / _DATABASE):
            rows = self._open().execute(
                "SELECT generation, state FROM generations ORDER BY generation"
            )
            return [_state(generation, text) for generation, text in rows]

    def state(self) -> State:
        """Return the state to go on from."""
        return (self.states() or [State()])[-1]

    def record(self, outcome: Outcome) -> None:
        """Commit one judged candidate."""
        values = (
            outcome.key,
            outcome.text,
            outcome.fitness if math.isfinite(outcome.fitness) else None,
            json.dumps(outcome.losses, allow_nan=False),
            int(outcome.full),
            outcome.reason,
            outcome.seconds,
            outcome.origin,
            json.dumps(outcome.parents),
            outcome.generation,
            outcome.behaviour,
        )
        with _reported(self.path / _DATABASE), self._open() as transaction:
            transaction.execute(
                "INSERT INTO candidates (key, text, fitness, losses, complete, reason, seconds,"
                " origin, parents, generation, behaviour) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def commit(self, state: State) -> None:
        """Commit a complete generation: the state to go on from."""
        text = json.dumps({"population": state.population, "archive_hits": state.archive_hits})
        with _reported(self.path / _DATABASE), self._open() as transaction:
            transaction.execute(
                "INSERT INTO generations (generation, state) VALUES (?, ?)",
                (state.generation - 1, text),
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(self.path / _DATABASE)
        return self._connection

    def _check(self) -> None:
        database = self.path / _DATABASE
        if not database.is_file():
            raise GppruneError(f"{database} is missing: the run cannot be read without it")
        with _reported(database):
            connection = self._open()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                raise sqlite3.DatabaseError("it is empty or damaged")
            if version != FORMAT:
                raise UsageError(
                    f"{database} is of format {version}, but this gpprune reads format {FORMAT}:"
                    " use the version that made it"
                )
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(" ".join(str(verdict).split()))
            (judged,) = connection.execute("SELECT digest FROM problem").fetchone()
            if judged != _digest(self.problem):
                raise GppruneError(
                    f"the [problem] in {self.path / SETTINGS} is not the one that this run judged"
                    " its candidates on: put it back, or begin a new run"
                )
            known = {outcome.key for outcome in self.outcomes()}
            for state in self.states():
                if not known.issuperset(state.population):
                    raise ValueError("a generation names a candidate that is not there")


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn what SQLite and damaged rows raise into one sentence."""
    try:
        yield
    except GppruneError:
        raise
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
        raise GppruneError(
            f"{path} cannot be used: {error}; nothing was changed, restore it from a copy or begin"
            " a new run"
        ) from error


def _connect(database: Path) -> sqlite3.Connection:
    # mode=rw: a missing database is an error, not a new empty one.
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _digest(problem: Mapping[str, Any]) -> str:
    """Tells one problem from another; entries that are None do not count, as in TOML."""

    def present(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: present(v) for name, v in sorted(value.items()) if v is not None}
        return [present(v) for v in value] if isinstance(value, list | tuple) else value

    return hashlib.sha256(json.dumps(present(problem)).encode()).hexdigest()


def _fill(draft: Path, settings: str, digest: str) -> None:
    """Write a new run's files and flush them to disk."""
    connection = sqlite3.connect(draft / _DATABASE)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        with connection:
            connection.execute("INSERT INTO problem (digest) VALUES (?)", (digest,))
    finally:
        connection.close()
    with (draft / SETTINGS).open("w", encoding="utf-8") as file:
        file.write(settings)
        file.flush()
        os.fsync(file.fileno())


def _outcome(row: tuple[Any, ...]) -> Outcome:
    key, text, fitness, losses, full, reason, seconds, origin, parents, generation, behaviour = row
    return Outcome(
        key=key,
        text=text,
        fitness=math.inf if fitness is None else fitness,
        losses=tuple(float(loss) for loss in json.loads(losses)),
        full=bool(full),
        reason=reason,
        seconds=seconds,
        origin=origin,
        parents=tuple(json.loads(parents)),
        generation=generation,
        behaviour=behaviour,
    )


def _state(generation: int, text: str) -> State:
    content = json.loads(text)
    return State(generation + 1, tuple(content["population"]), int(content["archive_hits"]))
