"""The C++ compiler: which it is, what its libraries depend on, and a run of it."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

# -ffp-contract=off: a product is rounded before it is added, as torch does it.
_FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)


class Unbuilt(Exception):
    """There is no library, for the reason given."""


def compiler() -> str | None:
    """The C++ compiler; None where there is none."""
    return shutil.which("g++") or shutil.which("clang++")


def digest(program: str, source: str) -> str:
    """What a library is known by: its source, the compiler and the processor."""
    return hashlib.sha256(f"{source}\n{_toolchain(program)}".encode()).hexdigest()[:16]


def build(program: str, source: str, library: Path) -> None:
    """Compile a source.

    Args:
        program: the compiler, as `compiler` gives it.
        source: C++ without headers of its own.
        library: where the shared library goes; the source is written beside it.

    Raises:
        Unbuilt: the compiler failed.
        OSError: the folder cannot be written.
    """
    file = library.with_suffix(".cpp")
    file.write_text(source, encoding="utf-8")
    asked = [program, *_FLAGS, str(file), "-o", str(library)]
    done = subprocess.run(asked, capture_output=True)
    if done.returncode:
        raise Unbuilt(f"{program} failed: {_complaint(done.stderr)}")


def _complaint(stderr: bytes) -> str:
    """The first error of a compiler, else its last line."""
    lines = stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
    return next((line for line in lines if "error" in line), lines[-1]).strip()


@lru_cache(maxsize=8)
def _toolchain(program: str) -> str:
    """What a library depends on beside its source."""
    try:
        asked = [program, "--version"]
        version = subprocess.run(asked, capture_output=True).stdout.decode(errors="replace")
    except OSError:  # it cannot be run, and will not build
        version = ""
    return "\n".join([version, *_FLAGS, platform.machine(), _processor()])


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = text.splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features"))}))
