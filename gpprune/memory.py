"""What tells that memory has run out, whoever says so."""

from __future__ import annotations

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
