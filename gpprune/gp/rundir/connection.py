"""Connections to a run's database: to read and write, or to read what may not be written."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from functools import partial
from pathlib import Path


def connect(database: Path) -> sqlite3.Connection:
    """Open a database that exists; only to read it where nothing else is permitted.

    A read-only connection changes no file, and refuses to write.

    Raises:
        sqlite3.Error: it cannot be opened.
        OSError: its files cannot be read.
    """
    if not may_write(database):
        return _to_read(database)
    # mode=rw: a missing database is an error, not a new empty one.
    connection = _open(database, "mode=rw")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def may_write(database: Path) -> bool:
    """Whether this process may write a database, its log, and the folder, which holds both."""
    files = [database, _log(database), database.with_name(f"{database.name}-shm")]
    return all(map(_may_write_to, (database.parent, *files)))


def _may_write_to(path: Path) -> bool:
    """Whether a file may be written, or is not there.

    Another process removes the log when it is the last to close, and makes it when it opens: what
    is forbidden once may be missing, and what is there then may just have been made.
    """
    allowed = partial(
        os.access, path, os.W_OK, effective_ids=os.access in os.supports_effective_ids
    )
    return allowed() or not path.exists() or allowed()


def _to_read(database: Path) -> sqlite3.Connection:
    if _has_log(database):
        connection = _with_log(database)
    else:
        # SQLite would make a log beside a database in WAL mode, unless it takes it for immutable.
        connection = _open(database, "mode=ro&immutable=1")
    connection.execute("PRAGMA query_only = ON")
    return connection


def _has_log(database: Path) -> bool:
    try:
        return _log(database).stat().st_size > 0
    except FileNotFoundError:
        return False


def _with_log(database: Path) -> sqlite3.Connection:
    """Read a log's transactions too. Its index, which others may be writing, can be missing."""
    connection = _open(database, "mode=ro")
    try:
        connection.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        connection.close()
        return _in_memory(database)
    return connection


def _in_memory(database: Path) -> sqlite3.Connection:
    """A database and its log, by way of a copy whose log SQLite can index."""
    memory = sqlite3.connect(":memory:")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / database.name
        shutil.copyfile(database, copy)
        shutil.copyfile(_log(database), _log(copy))
        source = _open(copy, "mode=rw")
        try:
            source.backup(memory)
        finally:
            source.close()
    return memory


def _open(database: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?{options}", uri=True, timeout=30)


def _log(database: Path) -> Path:
    """The write-ahead log: transactions that are not yet in the database."""
    return database.with_name(f"{database.name}-wal")
