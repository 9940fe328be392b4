"""Work on the rows of a matrix shared by threads, for C++ that lets go of Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch

_ELEMENTS_A_THREAD = 1 << 16


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
