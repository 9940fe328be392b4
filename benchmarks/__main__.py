"""All benchmarks that take minutes: `python -m benchmarks` or `make bench`."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from benchmarks import candidates, kernels, masks
from benchmarks.flags import parser_of


def main(arguments: Sequence[str] | None = None) -> None:
    parser_of("", __doc__).parse_args(arguments)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    kernels.main([])
    print()
    masks.main([])
    print()
    candidates.main([])


if __name__ == "__main__":
    main()
