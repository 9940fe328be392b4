"""Kernel time against eager evaluation of the tree, on a 4096 x 4096 layer.

    python -m benchmarks.kernels [--size 4096] [--count 50] [--backends ...] [--inductor]

The published metrics and seeded random formulas of depth 3 to 5. A purely elementwise formula
without transcendental functions is held against the time in which a copy would move as many bytes
as its inputs and its scores have. `inductor` compiles each formula for seconds, and is left out
unless asked for.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from benchmarks import made_up
from benchmarks.flags import parser_of, positive
from benchmarks.rival import eager
from gpprune.compile import kernel, lower
from gpprune.compile.program import MATRIX
from gpprune.gp.variation import Tree, half_and_half, reproducible
from gpprune.primitives import METRIC, PRIMITIVES, Formula, seeds

BACKENDS = ("blocked", "machine", "generated", "inductor")
REPEATS = 3
# Functions that no processor has an instruction for.
TRANSCENDENTAL = {"log", "exp", "tanh", "sigmoid", "pow", "pz_log", "pz_exp"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("kernels", __doc__)
    parser.add_argument("--size", type=positive, default=4096)
    parser.add_argument("--count", type=positive, default=50, help="random formulas")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS[:3])
    parser.add_argument("--inductor", action="store_true", help="beside these, inductor")
    given = parser.parse_args(arguments)
    measure(given.size, given.count, [*given.backends, *["inductor"] * given.inductor])


def measure(size: int, count: int, backends: Sequence[str]) -> None:
    """Print milliseconds, and ratios to eager evaluation in the same run.

    Args:
        size: of the layer, which is square.
        count: how many random formulas beside the published ones.
        backends: their names.
    """
    torch.manual_seed(0)
    terminals = {"W": torch.randn(size, size), **made_up.statistics(size, size)}
    out = torch.empty(size, size)
    copy = seconds(lambda: out.copy_(terminals["W"]))
    print(f"scores of a {size} x {size} float32 layer; a copy takes {copy * 1e3:.1f} ms")
    print(f"{'eager ms':>9}" + "".join(f"{b + ' ms':>12}{'ratio':>7}" for b in backends))
    ratios: dict[str, list[float]] = {backend: [] for backend in backends}
    floors: dict[str, list[float]] = {backend: [] for backend in backends}
    for formula in [*seeds.values(), *drawn(count)]:
        slow = seconds(partial(eager, formula, terminals))
        line = f"{slow * 1e3:>9.1f}"
        for backend in backends:
            fast = seconds(partial(kernel(formula, backend), **terminals, out=out))
            ratios[backend].append(slow / fast)
            line += f"{fast * 1e3:>12.1f}{slow / fast:>7.2f}"
            if elementwise(formula):
                moved = sum(terminals[name].dim() == 2 for name in formula.names) + 1
                floors[backend].append(fast / (copy * moved / 2))
        print(f"{line}  {formula.text[:60]}", flush=True)
    for backend in backends:
        print(
            f"{backend}: median speed-up over eager {statistics.median(ratios[backend]):.2f}; of "
            f"{len(floors[backend])} plain elementwise formulas, median "
            f"{statistics.median(floors[backend]):.2f} and at most {max(floors[backend]):.2f} "
            "times a copy of inputs and scores"
        )


def drawn(count: int) -> Iterator[Formula]:
    """Random formulas of depth 3 to 5 whose scores vary from weight to weight, always the same."""
    found = 0
    for number in itertools.count():
        if found == count:
            return
        with reproducible(0, number):
            formula = Formula(Tree(half_and_half(METRIC, 3, 5)), METRIC)
        if varies(formula):
            found += 1
            yield formula


def varies(formula: Formula) -> bool:
    """Whether scores vary from weight to weight."""
    program = lower(formula)
    return program.instructions[program.root].axes == MATRIX


def elementwise(formula: Formula) -> bool:
    """Whether it has no reductions and no transcendental functions."""
    names = {node.name for node in formula.tree if node.arity}
    reduced = any(PRIMITIVES[name].lowering.reductions for name in names)
    return not reduced and not names & TRANSCENDENTAL


def seconds(run: Callable[[], object]) -> float:
    """The least of a few timings, after one to warm up."""
    run()
    timings = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        timings.append(time.perf_counter() - start)
    return min(timings)


if __name__ == "__main__":
    main()
