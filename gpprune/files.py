"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpprune.errors import UsageError

_ABANDONED_AFTER = 3600.0  # seconds without a write, after which something partial is rubbish
_LONGEST_NAME = 255  # bytes, on the usual file systems
_RANDOM = 8  # characters that are added to the name of something partial
_PARTIAL = re.compile(r"\.(.+)\.partial-\w+")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def expanded(path: str | Path) -> Path:
    """A path with ``~`` and ``~user`` replaced by the home directory.

    Raises:
        UsageError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"the path {str(path)!r} begins with a home directory that does not exist: write ./~ "
            "for a file whose name begins with ~"
        ) from error


def out_of_room(error: BaseException) -> bool:
    """Whether a write failed because a disk is full, or a quota or ``ulimit -f`` is reached.

    Libraries written in Rust (safetensors, tokenizers) raise errors of their own, which hold the
    number in their text alone.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _NO_ROOM
    return any(f"os error {number})" in str(error) for number in _NO_ROOM)


def whole_name(name: str) -> str:
    """What a file or folder is called, or is to be called if it is partial still."""
    partial = _PARTIAL.fullmatch(name)
    return partial[1] if partial else name


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def forget(folder: Path, ours: Callable[[Path], bool], first: str | None = None) -> None:
    """Remove what is kept in a directory, and the directory if nothing else is there.

    Args:
        folder: where it is kept, if it is there.
        ours: whether a path in it is.
        first: the name of the file that says that the others are whole.
    """
    if not folder.is_dir():
        return
    if first is not None:
        (folder / first).unlink(missing_ok=True)
    for path in filter(ours, folder.iterdir()):
        remove(path)
    with suppress(OSError):  # something else lies there
        folder.rmdir()


def whole_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all.

    The content goes into a new file beside ``path``, which then takes its name: a link there is
    replaced and never followed. Missing directories above it are made. After a kill the new
    file stays in a hidden directory, and the next writer of the same path clears it away.

    Args:
        path: the file; its mode is what the umask leaves of 0666.
        content: a text, written as UTF-8 with its line ends as they are, or bytes.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    with file_to_write(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def file_to_write(path: Path) -> Iterator[Path]:
    """A path to write a file at, which takes the name ``path`` when the context ends well.

    As :func:`whole_file`, for a writer that takes a path. It lies in a hidden directory of its own
    until then, for writers that begin under a name of theirs (safetensors) and are killed.

    Raises:
        OSError: as :func:`whole_file`; or nothing was written.
    """
    with _beside(path) as prefix:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        try:
            yield folder / path.name
            _settle(folder)
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        _sync(path.parent)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the name ``target`` when the context ends well.

    It is a hidden sibling of ``target`` until then, so the move is one rename on one file
    system. An error or an interrupt removes it; after a kill it stays under its hidden name and
    the next writer of the same target clears it away. Its files have the modes that the umask
    leaves, whatever modes they were made with.

    Raises:
        OSError: the folder cannot be written, or ``target`` has come to exist meanwhile.
    """
    with _beside(target) as prefix:
        partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            yield partial
            publish(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def try_folder(target: Path) -> None:
    """See that :func:`whole_folder` can make a folder, and leave nothing behind.

    Raises:
        OSError: it cannot, or ``target`` exists.
        ValueError: ``target`` holds characters that no path can hold.
    """
    missing = missing_parents(target)
    with _beside(target) as prefix:
        os.rmdir(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        with suppress(FileNotFoundError):
            os.lstat(target)  # fails in other ways for a name that is too long
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    remove_empty(missing)


@contextmanager
def _beside(path: Path) -> Iterator[str]:
    """The prefix for something partial in ``path``'s directory, which is made if it is missing.

    An error removes the directories that were made.
    """
    missing = missing_parents(path)
    prefix = _prefix(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path.parent, prefix)
        yield prefix
    except BaseException:
        remove_empty(missing)
        raise


def _prefix(name: str) -> str:
    """How the names of what will be called ``name`` begin while it is partial."""
    prefix = f".{name}.partial-"
    if len(os.fsencode(prefix)) + _RANDOM <= _LONGEST_NAME:
        return prefix
    return f".{hashlib.sha256(os.fsencode(name)).hexdigest()}.partial-"


def missing_parents(path: Path) -> list[Path]:
    """The directories above ``path`` that do not exist, the innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def remove_empty(folders: list[Path]) -> None:
    """Remove the directories of these that are empty, the first first."""
    for folder in folders:
        with suppress(OSError):  # gone, or in use by another writer
            folder.rmdir()


def publish(partial: Path, target: Path) -> None:
    """Settle a folder on disk, then give it its name, on the same file system.

    Raises:
        OSError: ``target`` has come to exist.
    """
    _settle(partial)
    os.replace(partial, target)
    _sync(target.parent)


def _settle(partial: Path) -> None:
    """Put a folder's files on disk, and give them and it the modes of new ones."""
    allowed = _allowed(partial)
    for path in (*partial.rglob("*"), partial):
        if not path.is_symlink():
            _sync(path)
            mode = path.stat().st_mode
            runs = path.is_dir() or mode & stat.S_IXUSR
            # A set-group-id bit that a directory has from its parent stays.
            path.chmod(stat.S_IMODE(mode) & ~0o777 | (0o777 if runs else 0o666) & allowed)


def _allowed(folder: Path) -> int:
    """The mode bits that the umask leaves, seen on a new file: reading it would change it."""
    probe = folder / secrets.token_hex(_RANDOM)
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o777))
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def _sync(path: Path) -> None:
    """Put a file or, where the file system can, a directory on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def _clear_abandoned(parent: Path, prefix: str) -> None:
    # Names are compared and not globbed: a target's name may hold the characters of a pattern.
    for path in parent.iterdir():
        if path.name.startswith(prefix) and _is_abandoned(path):
            remove(path)


def _is_abandoned(path: Path) -> bool:
    try:
        latest = max(part.lstat().st_mtime for part in (path, *path.rglob("*")))
    except FileNotFoundError:  # its writer has just finished
        return False
    return time.time() - latest > _ABANDONED_AFTER
