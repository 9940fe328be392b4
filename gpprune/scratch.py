"""Temporary directories that go with their process, and with the next one where it was killed."""

from __future__ import annotations

import fcntl
import shutil
import weakref
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir, mkdtemp

_PREFIX = "gpprune-"
_LOCK = ".lock"  # held while the directory is in use; a process's end lets it go


class Scratch:
    """A temporary directory; it goes with `close`, with the object, and with the process.

    A process that is killed cannot remove its own. The next one that makes a directory does: the
    lock of an abandoned one is free.

    Attributes:
        path: where it is.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self) -> None:
        _sweep()
        self.path = Path(mkdtemp(prefix=_PREFIX))
        unnamed = self.path / f"{_LOCK}.new"  # so that nobody finds it before it is held
        lock = unnamed.open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / _LOCK)

        def remove(path: Path = self.path) -> None:
            shutil.rmtree(path, ignore_errors=True)
            lock.close()

        self._remove = weakref.finalize(self, remove)

    def close(self) -> None:
        """Remove the directory with all that is in it."""
        self._remove()


def _sweep() -> None:
    """Remove the directories of processes that were killed, as far as they are ours to remove."""
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
