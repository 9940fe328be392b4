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
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.files import whole_folder
from gpprune.gp.outcome import Outcome
from gpprune.gp.rundir.connection import may_write
from gpprune.gp.rundir.database import Database
from gpprune.gp.rundir.settingsfile import SETTINGS, read_settings, settings_text
from gpprune.gp.rundir.trouble import no_space, reported, unwritable
from gpprune.gp.settings import SearchSettings
from gpprune.gp.state import State
from gpprune.primitives import Language

_DATABASE = "run.db"
_LOCK = "lock.db"


class RunDirectory:
    """One search on disk. Make it with `create` or `open`; close it, or use it in a `with`.

    Attributes:
        path: the directory.
        search: the settings that the search began with.
        problem: whatever the caller keeps of what is searched.
    """

    def __init__(self, path: Path, search: SearchSettings, problem: dict[str, Any]) -> None:
        self.path = path
        self.search = search
        self.problem = problem
        self._database = Database(path / _DATABASE)

    @classmethod
    def create(
        cls, path: Path | str, search: SearchSettings, problem: Mapping[str, Any]
    ) -> RunDirectory:
        """Make a run directory, whole or not at all.

        Args:
            path: where there is nothing yet; `~` is the home directory.
            search: the settings of the search.
            problem: the caller's own record of what is searched: a JSON-like dictionary. TOML has
                no null, so entries that are None are left out.

        Raises:
            UsageError: the path exists, or the problem cannot be written as TOML.
            GppruneError: the directory cannot be written.
        """
        path = _expanded(path)
        text = settings_text(search, problem)
        if os.path.lexists(path):
            raise UsageError(f"{path} exists: choose another directory, or resume that run")
        try:
            with whole_folder(path) as draft:
                Database.create(draft / _DATABASE, _digest(problem))
                (draft / SETTINGS).write_text(text, encoding="utf-8")
        except (OSError, sqlite3.Error) as error:
            way_out = ": free some space, or choose another place" if no_space(error) else ""
            raise GppruneError(f"cannot make the run directory {path}: {error}{way_out}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Open an existing run, to read or to resume it. Changes nothing.

        A run that may not be written can be read.

        Raises:
            UsageError: the path is no run directory, or one of another format version.
            GppruneError: its files are damaged, or cannot be read.
        """
        path = _expanded(path)
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
        self._database.close()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other processes from running this search meanwhile; they may still read it.

        The lock ends with the process, however it ends.

        Raises:
            GppruneError: another process has it, or the run may not be written.
        """
        if not may_write(self._database.path):
            raise GppruneError(unwritable(self.path))
        with reported(self.path / _LOCK):
            # who asks whether the run is busy has the lock for a moment
            lock = sqlite3.connect(self.path / _LOCK, timeout=0.5, isolation_level=None)
        try:
            with reported(self.path / _LOCK):
                self._take(lock)
            yield
        finally:
            lock.close()
            self.close()

    def _take(self, lock: sqlite3.Connection) -> None:
        if not _taken(lock):
            raise GppruneError(
                f"the run {self.path} is in use by another process: wait for it or stop it"
            )

    @property
    def busy(self) -> bool:
        """Whether a process runs this search at the moment. Changes nothing."""
        file = self.path / _LOCK
        if not file.is_file():
            return False
        with reported(file):
            lock = sqlite3.connect(
                f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=0, isolation_level=None
            )
        try:
            with reported(file):
                return not _taken(lock, "SELECT name FROM sqlite_master")
        finally:
            lock.close()

    def outcomes(self, language: Language | None = None) -> list[Outcome]:
        """Return all candidates judged so far, in order.

        Args:
            language: what the search is for. Where it is given, a candidate whose text does not
                match its key is refused.

        Raises:
            GppruneError: a row is damaged, or its text does not match its key.
        """
        return self._database.outcomes(language)

    def states(self) -> list[State]:
        """Return the state after each complete generation, in order."""
        return self._database.states()

    def state(self) -> State:
        """Return the state to go on from."""
        return (self.states() or [State()])[-1]

    def record(self, outcome: Outcome) -> None:
        """Commit one judged candidate.

        Raises:
            GppruneError: it cannot be written; what was committed before it stands.
        """
        self._database.record(outcome)

    def commit(self, state: State) -> None:
        """Commit a complete generation: the state to go on from.

        Raises:
            GppruneError: it cannot be written; what was committed before it stands.
        """
        self._database.commit(state)

    def _check(self) -> None:
        self._database.check()
        if self._database.problem() != _digest(self.problem):
            raise GppruneError(
                f"the [problem] in {self.path / SETTINGS} is not the one that this run judged"
                " its candidates on: put it back, or begin a new run"
            )


def _taken(lock: sqlite3.Connection, statement: str = "BEGIN EXCLUSIVE") -> bool:
    """Whether a statement had what it needs of the lock; no: another process holds it."""
    try:
        lock.execute(statement)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


def _expanded(path: Path | str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path} begins with the home directory of nobody: {error}") from error


def _digest(problem: Mapping[str, Any]) -> str:
    """Tells one problem from another; entries that are None do not count, as in TOML."""

    def present(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: present(v) for name, v in sorted(value.items()) if v is not None}
        return [present(v) for v in value] if isinstance(value, list | tuple) else value

    return hashlib.sha256(json.dumps(present(problem)).encode()).hexdigest()
