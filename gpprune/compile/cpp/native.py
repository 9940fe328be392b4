"""C++ of gpprune's own: built once, kept in the cache folder, run on several threads."""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from threading import Lock

from gpprune.compile.cpp import store
from gpprune.compile.cpp.threads import shares as shares
from gpprune.compile.cpp.threads import together as together
from gpprune.compile.cpp.toolchain import Unbuilt, build, digest
from gpprune.compile.cpp.toolchain import compiler as compiler

# Seconds before a source that failed to compile twice is tried again, a disk may have been full;
# as many more for each further failure.
PATIENCE = 60.0


class _Builds:
    """What builds share in a process.

    Attributes:
        lock: held while one builds: a source that several threads ask for is built once.
        failures: by a library's name, how often its source failed to compile, and when last.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.failures: dict[str, tuple[int, float]] = {}

    def renew(self) -> None:
        """Take a new lock: that of a forked child may be held by a thread it does not have."""
        self.lock = Lock()

    def check(self, name: str) -> None:
        """See that a source did not fail again and again just now.

        Raises:
            Unbuilt: it did.
        """
        times, last = self.failures.get(name, (0, 0.0))
        if times > 1 and time.monotonic() - last < PATIENCE * (times - 1):
            raise Unbuilt("its source could not be compiled a short time ago")

    def failed(self, name: str) -> None:
        """Remember a failure."""
        times, _ = self.failures.get(name, (0, 0.0))
        self.failures[name] = (times + 1, time.monotonic())


_builds = _Builds()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_builds.renew)


def functions(source: str, **signatures: str) -> tuple[Callable[..., None], ...] | None:
    """Functions of a source, built as a library or found in the cache folder.

    It lies there under a digest of the source, the compiler and the processor. None where there
    is no C++ compiler, or one that cannot build it now; a later call tries again.

    Args:
        source: declares them `extern "C"`; they return nothing.
        signatures: by name, a letter for each argument: "p" a pointer, "n" a 64-bit integer.
    """
    try:
        return _functions(source, **signatures)
    except Unbuilt:
        return None


def is_built(source: str) -> bool:
    """Whether a source's library is in the cache folder."""
    program = compiler()
    return program is not None and store.find(digest(program, source)) is not None


def forget() -> None:
    """Begin anew, as another process would: with no library loaded, and nothing said or failed."""
    _functions.cache_clear()
    _builds.failures.clear()
    store.say_again()


@lru_cache(maxsize=1024)  # of what could be built: an error is not kept
def _functions(source: str, **signatures: str) -> tuple[Callable[..., None], ...]:
    library = _library(source)
    return tuple(_function(library, name, letters) for name, letters in signatures.items())


def _function(library: ctypes.CDLL, name: str, letters: str) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes = [{"p": ctypes.c_void_p, "n": ctypes.c_int64}[one] for one in letters]
    function.restype = None
    found: Callable[..., None] = function
    return found


def _library(source: str) -> ctypes.CDLL:
    program = compiler()
    if program is None:
        raise Unbuilt("there is no C++ compiler")
    name = digest(program, source)
    with _builds.lock:
        return _opened(store.find(name)) or _built(program, source, name)


def _opened(library: Path | None) -> ctypes.CDLL | None:
    """A library of the cache folder; None where there is none that can be loaded."""
    if library is None:
        return None
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        store.refuse(library.parent, f"holds libraries that cannot be loaded ({error})")
        return None


def _built(program: str, source: str, name: str) -> ctypes.CDLL:
    """Build a library, and load it from the cache folder, or else from where it was built."""
    _builds.check(name)
    try:
        with tempfile.TemporaryDirectory(prefix="gpprune-") as folder:
            draft = Path(folder) / "library.so"
            build(program, source, draft)
            # once loaded it needs its file no more
            return _opened(store.keep(draft, name)) or ctypes.CDLL(str(draft))
    except (OSError, Unbuilt) as error:
        if isinstance(error, Unbuilt):
            _builds.failed(name)
        store.say("build", f"gpprune is slower without C++ that could not be built: {error}")
        raise Unbuilt(str(error)) from error
