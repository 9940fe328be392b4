"""C++ of gpprune's own: built once, kept in the cache folder, run on several threads."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from threading import Lock

import torch

from gpprune.compile.cache import cache_folder

# -ffp-contract=off: a product is rounded before it is added, as torch does it.
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
_ELEMENTS_A_THREAD = 1 << 16
_BUILDING = Lock()  # a source that several threads ask for is built once


def shares(rows: int, columns: int) -> list[tuple[int, int]]:
    """Rows of a matrix, from and to, for each of as many threads as torch has and pay."""
    threads = min(torch.get_num_threads(), rows, 1 + rows * columns // _ELEMENTS_A_THREAD)
    edges = [rows * at // threads for at in range(threads + 1)]
    return list(pairwise(edges))


def together(run: Callable[[int], None], count: int) -> None:
    """`run(0)` to `run(count - 1)` at once; what they call must let go of Python's lock."""
    if count == 1:
        run(0)
    else:
        list(_pool(count).map(run, range(count)))


@lru_cache(maxsize=8)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gpprune")


# A forked child has none of the pool's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    return shutil.which("g++") or shutil.which("clang++")


@lru_cache(maxsize=1024)
def functions(source: str, **signatures: str) -> tuple[Callable[..., None], ...] | None:
    """Functions of a source, built as a library or found in the cache folder.

    It lies there under a digest of the source, the compiler and the processor. None where there
    is no C++ compiler, or one that cannot build it.

    Args:
        source: declares them `extern "C"`; they return nothing.
        signatures: by name, a letter for each argument: "p" a pointer, "n" a 64-bit integer.
    """
    with _BUILDING:
        library = _library(source)
    if library is None:
        return None
    found = []
    for name, letters in signatures.items():
        function = getattr(library, name)
        function.argtypes = [{"p": ctypes.c_void_p, "n": ctypes.c_int64}[one] for one in letters]
        function.restype = None
        found.append(function)
    return tuple(found)


def is_built(source: str) -> bool:
    """Whether a source's library is in the cache folder."""
    program = compiler()
    return program is not None and _target(program, source).is_file()


def _library(source: str) -> ctypes.CDLL | None:
    program = compiler()
    if program is None:
        return None
    target = _target(program, source)
    for _ in range(2):  # one that is damaged is built again
        if not target.is_file() and not _build(program, source, target):
            return None
        try:
            return ctypes.CDLL(str(target))
        except OSError:
            with suppress(OSError):
                target.unlink()
    return None


def _target(program: str, source: str) -> Path:
    name = hashlib.sha256(f"{source}\n{_toolchain(program)}".encode()).hexdigest()[:16]
    return cache_folder() / "native" / f"{name}.so"


@lru_cache(maxsize=8)
def _toolchain(program: str) -> str:
    """What a library depends on beside its source."""
    try:
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    except OSError:  # it cannot be run, and will not build
        version = ""
    return "\n".join([version, *_FLAGS, platform.machine(), _processor()])


def _build(program: str, source: str, target: Path) -> bool:
    """Whether it could be built; it is written whole, beside others that build it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            file, draft = Path(folder) / "source.cpp", Path(folder) / target.name
            file.write_text(source, encoding="utf-8")
            built = [program, *_FLAGS, str(file), "-o", str(draft)]
            if subprocess.run(built, capture_output=True).returncode:
                return False
            with draft.open("rb") as written:
                os.fsync(written.fileno())  # a library cut short would end the process
            os.replace(draft, target)
    except OSError:
        return target.is_file()
    return True


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
