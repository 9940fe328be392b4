"""Memory: what tells that it has run out, whoever says so, and giving it back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

# torch's device allocators raise a class of this name; its others, a RuntimeError of these words.
_CLASS = "OutOfMemoryError"
_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out.

    It is no fault of the candidate: another day, or on another machine, there is enough.
    torch is known by its names and words, for the search does without it.
    """
    if isinstance(error, MemoryError) or _CLASS in {kind.__name__ for kind in type(error).__mro__}:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@cache
def _trim() -> Callable[[int], object] | None:
    """The C library's `malloc_trim`, where it has one (glibc)."""
    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):
        return None


def give_back() -> None:
    """Give freed memory back to the system.

    The C library keeps what is freed between small tensors that stay. After block upon block of
    large ones that adds up to what they all took.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
