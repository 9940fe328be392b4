"""Built libraries in the cache folder, each with a digest beside it.

A library is code that this process runs. It is loaded only if it is whole, which its digest says,
and if nobody else can have written it: neither it nor its folder belongs to another user (but for
root) or is open to others.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from gpprune.compile.cache import cache_folder

_LOG = logging.getLogger(__name__)


_said: set[str] = set()


def say(topic: str, sentence: str) -> None:
    """Warn once of a topic: a line on standard error, unless the process has set up logging."""
    if topic not in _said:
        _said.add(topic)
        _LOG.warning(sentence)


def say_again() -> None:
    """Forget what has been said."""
    _said.clear()


def refuse(folder: Path, reason: str) -> None:
    """Say that libraries are not kept in a folder."""
    sentence = (
        f"gpprune builds its C++ anew for this process, because {folder} {reason}: set "
        "GPPRUNE_CACHE to a folder of your own, on a disk that programs may run from"
    )
    say(str(folder), sentence)


def find(name: str) -> Path | None:
    """The library of a name, if there is one that may be loaded."""
    folder = _folder()
    if folder is None:
        return None
    library = folder / f"{name}.so"
    return library if _sound(library) else None


def keep(draft: Path, name: str) -> Path | None:
    """Copy a library into the cache folder; None, which is said, where that cannot be."""
    folder = _folder()
    if folder is None:
        return None
    library, content = folder / f"{name}.so", draft.read_bytes()
    try:
        _write_whole(library, content)
        _write_whole(_beside(library), hashlib.sha256(content).hexdigest().encode())
    except OSError as error:
        refuse(folder, f"cannot be written ({error.strerror})")
        return None
    return library


def _folder() -> Path | None:
    """The folder of libraries, private to the user; None, which is said, where it is not."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(folder.stat()):
            folder.chmod(0o700)  # it may have been made under another umask
        found = folder.stat()
    except OSError as error:
        refuse(folder, f"cannot be used ({error.strerror})")
        return None
    if not _is_trusted(found):
        reason = "is open to others" if _is_own(found) else "belongs to another user"
        refuse(folder, reason)
        return None
    return folder


def _sound(library: Path) -> bool:
    """Whether a library is there, whole, and written by nobody else."""
    try:
        found = library.lstat()
        if not stat.S_ISREG(found.st_mode) or not _is_trusted(found):
            return False
        whole = hashlib.sha256(library.read_bytes()).hexdigest().encode()
        return _beside(library).read_bytes() == whole
    except OSError:
        return False


def _is_own(found: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _is_trusted(found: os.stat_result) -> bool:
    """Whether nobody else can have written it, but for root, who may write anything."""
    open_to_others = hasattr(os, "geteuid") and found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return (_is_own(found) or found.st_uid == 0) and not open_to_others


def _beside(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _write_whole(target: Path, content: bytes) -> None:
    """Write a file that nobody sees in part, for the user alone."""
    handle, draft = tempfile.mkstemp(dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a library cut short would end the process
        os.replace(draft, target)
    except OSError:
        with suppress(OSError):
            os.unlink(draft)
        raise
