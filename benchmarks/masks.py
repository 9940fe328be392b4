"""Masks by selection against a stable sort of every row.

python -m benchmarks.masks [--rows 11008] [--columns 4096] [--cases 1000]
"""

from __future__ import annotations

import argparse
import random

import torch

from gpprune.prune import prune_mask

from .kernels import seconds
from .rival import sorted_mask

SPARSITY = 0.5
VALUES = [0.0, -0.0, 1.0, 1.0, 2.0, -3.0, 1e-45, 3.4e38, float("inf"), float("-inf")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=11008)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--cases", type=int, default=1000)
    given = parser.parse_args()
    measure(given.rows, given.columns, given.cases)


def measure(rows: int = 11008, columns: int = 4096, cases: int = 1000) -> None:
    """Print seconds and their ratio, and how many awkward masks are those of the stable sort."""
    torch.manual_seed(0)
    scores = torch.randn(rows, columns).abs()
    sort = seconds(lambda: torch.sort(scores, dim=1, stable=True))
    whole = seconds(lambda: sorted_mask(scores, SPARSITY))
    ours = seconds(lambda: prune_mask(scores, SPARSITY, "row"))
    print(f"half of each row of {rows} x {columns} float32 scores")
    print(f"torch.sort, stable     {sort:7.3f} s   {sort / ours:5.2f} times as long as gpprune")
    print(f"mask by a stable sort  {whole:7.3f} s   {whole / ours:5.2f} times as long as gpprune")
    print(f"gpprune                {ours:7.3f} s")
    draw = random.Random(0)
    equal = sum(_agrees(draw) for _ in range(cases))
    print(f"{equal} of {cases} masks with ties, constants and infinities equal the stable sort's")


def _agrees(draw: random.Random) -> bool:
    rows, columns = draw.randint(1, 6), draw.randint(1, 300)
    few = draw.sample(VALUES, draw.randint(1, len(VALUES)))
    scores = torch.tensor([[draw.choice(few) for _ in range(columns)] for _ in range(rows)])
    percent = draw.randint(0, 99)
    count = percent * columns // 100
    order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
    wanted = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
    return torch.equal(prune_mask(scores, percent / 100, "row"), wanted)


if __name__ == "__main__":
    main()
