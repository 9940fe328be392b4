"""What may befall the files of a run, each in a sentence that says what to do."""

from __future__ import annotations

import errno
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpprune.errors import GppruneError

# Whatever else SQLite cannot do with a file is a write for which there is no room: a full disk, a
# quota, a limit on the size of files.
_UNREADABLE = {sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what SQLite, the file system and damaged rows raise into one sentence.

    Args:
        path: a file of a run directory.

    Raises:
        GppruneError: what befell the file, and the way out.
    """
    try:
        yield
    except GppruneError:
        raise
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
        raise GppruneError(_sentence(path, error)) from error


def no_space(error: BaseException) -> bool:
    """Whether a file could not be written for want of space, or of leave to grow."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    code = getattr(error, "sqlite_errorcode", 0)
    grew = _base(code) == sqlite3.SQLITE_IOERR and code not in _UNREADABLE
    return grew or code == sqlite3.SQLITE_FULL


def _base(code: int) -> int:
    """SQLite's primary result code of an extended one."""
    return code & 0xFF


def _sentence(path: Path, error: Exception) -> str:
    if no_space(error):
        return (
            f"{path} cannot be written ({error}): the disk or a quota is full, or `ulimit -f`"
            " limits the size of files; the run is intact: free some space, then go on with"
            f" `gpprune resume {shlex.quote(str(path.parent))}`"
        )
    match _base(getattr(error, "sqlite_errorcode", 0)):
        case sqlite3.SQLITE_READONLY:
            return unwritable(path.parent)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return f"{path} cannot be opened ({error}): see to the permissions of the run's files"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"{path} is held by another program ({error}): close it there, and try again"
    return (
        f"{path} cannot be used: {error}; nothing was changed, restore it from a copy or begin"
        " a new run"
    )


def unwritable(run: Path) -> str:
    """What to say of a run that can be read alone."""
    return f"the run {run} may not be written: make it writable, or copy it and go on with the copy"
