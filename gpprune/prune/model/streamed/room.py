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
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


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
    with suppress(OSError):
        # "0::/a/b" of the only hierarchy there is; in a container often "0::/"
        own = _OWN_GROUP.read_text().strip().rpartition("::")[2].strip("/")
        found += [room for at in (_GROUPS / own, *(_GROUPS / own).parents) for room in _left(at)]
    return max(0.0, min(found))


def _left(group: Path) -> list[float]:
    """What a group of processes may still take, if it has a limit; files in memory can go."""
    with suppress(OSError, ValueError, KeyError):  # no such group, or "max"
        most, current = (int((group / f"memory.{n}").read_text()) for n in ("max", "current"))
        lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [float(most - current + int(dict(lines)["inactive_file"]))]
    return []
