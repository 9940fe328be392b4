"""All benchmarks: `python -m benchmarks` or `make bench`."""

from __future__ import annotations

import platform

import torch

from . import candidates, kernels, masks

print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
kernels.measure()
print()
masks.measure()
print()
candidates.main()
