"""Kernel time against eager evaluation of the tree, ten formulas on a 4096 x 4096 layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from gpprune.compile import kernel
from gpprune.primitives import parse, seeds

from .rival import eager

SIZE = 4096
FORMULAS = {
    **seeds,
    "wanda x row G": parse("mul(mul(abs(W), X), sqrt(rownorm(G)))"),
    "z-scored": parse("mul(zscore(abs(W)), add(X, minmax(G)))"),
    "deep": parse("add(mul(sqr(W), tanh(mul(X, G))), log(add(abs(W), mul(X, sqrt(G)))))"),
    "exponents": parse("mul(pow(abs(W), 0.8), pow(mul(X, colnorm(G)), 0.4))"),
}
REPEATS = 3


def seconds(run: Callable[[], object]) -> float:
    """The least of a few timings, after one to warm up."""
    run()
    timings = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        timings.append(time.perf_counter() - start)
    return min(timings)


def main() -> None:
    """Print milliseconds, and ratios to eager evaluation in the same run."""
    torch.manual_seed(0)
    terminals = {
        "W": torch.randn(SIZE, SIZE),
        "X": torch.rand(SIZE),
        "G": torch.rand(SIZE, SIZE) * 1e-2,
    }
    out = torch.empty(SIZE, SIZE)
    copy = seconds(lambda: out.copy_(terminals["W"]))
    print(f"scores of a {SIZE} x {SIZE} float32 layer; a copy takes {copy * 1e3:.1f} ms")
    print(f"{'formula':<15}{'eager ms':>10}{'blocked':>10}{'ratio':>7}{'inductor':>10}{'ratio':>7}")
    ratios: dict[str, list[float]] = {"blocked": [], "inductor": []}
    for name, formula in FORMULAS.items():
        slow = seconds(lambda f=formula: eager(f, terminals))
        line = f"{name:<15}{slow * 1e3:>10.1f}"
        for backend, found in ratios.items():
            run = kernel(formula, backend)
            fast = seconds(lambda k=run: k(**terminals, out=out))
            found.append(slow / fast)
            line += f"{fast * 1e3:>10.1f}{slow / fast:>7.2f}"
        print(line, flush=True)
    blocked, inductor = (statistics.median(found) for found in ratios.values())
    print(f"median speed-up over eager: blocked {blocked:.2f}, inductor {inductor:.2f}")
