"""Folders that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ABANDONED_AFTER = 3600.0  # seconds without a write, after which a partial folder is rubbish


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the name ``target`` when the context ends well.

    It is a hidden sibling of ``target`` until then, so the move is one rename on one file
    system. An error or an interrupt removes it; after a kill it stays under its hidden name and
    the next writer of the same target clears it away.

    Raises:
        OSError: the folder cannot be written, or ``target`` has come to exist meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-"
    _clear_abandoned(target.parent, prefix)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield partial
        _publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, target: Path) -> None:
    """Put the files on disk, then give the folder its name."""
    for path in partial.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    # mkdtemp makes a private folder; its name should open to those whom a plain mkdir lets in.
    umask = os.umask(0)
    os.umask(umask)
    partial.chmod(0o777 & ~umask)
    os.replace(partial, target)


def _clear_abandoned(parent: Path, prefix: str) -> None:
    now = time.time()
    for path in parent.glob(f"{glob.escape(prefix)}*"):
        try:
            latest = max(part.stat().st_mtime for part in (path, *path.rglob("*")))
        except FileNotFoundError:  # its writer has just finished
            continue
        if now - latest > _ABANDONED_AFTER:
            shutil.rmtree(path, ignore_errors=True)
