"""Masks by selection against a stable sort of every row, layer or group of 4.

python -m benchmarks.masks [--rows 11008] [--columns 4096] [--cases 1000]
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.flags import parser_of, positive
from benchmarks.kernels import seconds
from benchmarks.rival import sorted_mask
from gpprune.prune import parse_pattern, prune_mask
from gpprune.prune.select.lowest.bisection import WIDEST

SPARSITY = 0.5
PATTERNS = {"row": SPARSITY, "layer": SPARSITY, "2:4": None}
WIDE = 0.05  # the share of awkward layers that are as large as a real one
VALUES = [0.0, -0.0, 1.0, 1.0, 2.0, -3.0, 1e-45, 3.4e38, float("inf"), float("-inf")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("masks", __doc__)
    parser.add_argument("--rows", type=positive, default=11008)
    parser.add_argument("--columns", type=positive, default=4096)
    parser.add_argument("--cases", type=positive, default=1000)
    given = parser.parse_args(arguments)
    measure(given.rows, given.columns, given.cases)


def measure(rows: int = 11008, columns: int = 4096, cases: int = 1000) -> None:
    """Print seconds and their ratios, and how many awkward masks are those of the stable sort.

    Args:
        rows: of the scores.
        columns: of the scores; a multiple of 4.
        cases: how many small masks are held against the stable sort's.
    """
    torch.manual_seed(0)
    scores = torch.randn(rows, columns).abs()
    for pattern, sparsity in PATTERNS.items():
        print(f"pattern {pattern}: half of {rows} x {columns} float32 scores")
        _against_sorts(scores, pattern, sparsity)
        draw = random.Random(0)
        equal = sum(_agrees(draw, pattern, sparsity) for _ in range(cases))
        print(
            f"{equal} of {cases} masks with ties, constants and infinities equal the stable sort's",
            flush=True,
        )


def _against_sorts(scores: Tensor, pattern: str, sparsity: float | None) -> None:
    grouped = _grouped(scores, pattern)
    sort = seconds(lambda: torch.sort(grouped, dim=1, stable=True))
    whole = seconds(lambda: sorted_mask(grouped, SPARSITY))
    ours = seconds(lambda: prune_mask(scores, sparsity, pattern))
    print(f"torch.sort, stable     {sort:7.3f} s   {sort / ours:6.2f} times as long as gpprune")
    print(f"mask by a stable sort  {whole:7.3f} s   {whole / ours:6.2f} times as long as gpprune")
    print(f"gpprune                {ours:7.3f} s")


def _grouped(scores: Tensor, pattern: str) -> Tensor:
    """The scores with what competes in each row."""
    return scores.reshape(parse_pattern(pattern).groups(scores.shape), -1)


def _agrees(draw: random.Random, pattern: str, sparsity: float | None) -> bool:
    rows, columns = draw.randint(1, 6), draw.randint(1, 75) * 4
    if pattern == "layer" and draw.random() < WIDE:
        rows = WIDEST // columns + 1
    few = torch.tensor(draw.sample(VALUES, draw.randint(1, len(VALUES))))
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    scores = few[torch.randint(len(few), (rows, columns), generator=generator)]
    percent = 50 if sparsity is None else draw.randint(0, 99)
    grouped = _grouped(scores, pattern)
    order = torch.sort(grouped, dim=1, stable=True).indices[:, : percent * grouped.shape[1] // 100]
    wanted = torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, order, True)
    found = prune_mask(scores, None if sparsity is None else percent / 100, pattern)
    return torch.equal(found, wanted.view(scores.shape))


if __name__ == "__main__":
    main()
