"""Whether a model fits in memory."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from gpprune.prune.model.stored import opened

_BYTES = 4  # of a weight in memory
_MORE = 1.3  # of what the weights take: text, statistics, a layer's scores
_CGROUP = Path("/sys/fs/cgroup")


def needed(files: Iterable[str]) -> float:
    """About how many bytes it takes to prune the model of some safetensors in memory."""
    weights = 0
    for path in files:
        with opened(path) as file:
            names = list(file.keys())
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return weights * _BYTES * _MORE


def available(device: torch.device) -> float:
    """How many bytes of memory there are for it, by the system and by the limits of the process."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = [float(psutil.virtual_memory().available)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(float(limit - psutil.Process().memory_info().vms))
    with suppress(OSError, ValueError):  # no such group, or "max"
        most = int((_CGROUP / "memory.max").read_text())
        found.append(float(most - int((_CGROUP / "memory.current").read_text())))
    return min(found)
