"""What each backend takes in all, compiling included, and whether the chooser picks well.

    python -m benchmarks.backends [--formulas 24] [--passes 40]

Two kinds of work over the 210 linear layers of SmolLM2-135M: a search's, which scores them once by
each of many formulas, and that of pruning a larger model, which scores as many weights as
`--passes` such models have by a few published formulas. Every backend has a process and empty
caches of its own; what is built once for all formulas is built before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gpprune.cli.console import print_table
from gpprune.compile import kernel
from gpprune.compile.cpp import machine
from gpprune.primitives import Formula, published
from gpprune.prune import linear_layers, load_model

from .search import distinct

BACKENDS = ("blocked", "inductor", "machine", "generated", "auto")
FEW = ("wanda", "ria", "pruner-zero")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formulas", type=int, default=24)
    parser.add_argument("--passes", type=int, default=40)
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.backend:
        print(json.dumps(_seconds(given.backend, given.formulas, given.passes)))
        return
    load_model("smollm2")  # unpacked before caches are empty
    found = {backend: _apart(backend, given.formulas, given.passes) for backend in BACKENDS}
    rows = [
        [backend, *(f"{one:.1f}" for one in times), *(f"{one / auto:.2f}" for one, auto in pairs)]
        for backend, times in found.items()
        for pairs in [list(zip(times, found["auto"], strict=True))]
    ]
    searching, pruning = f"{given.formulas} formulas, s", f"{len(FEW)} formulas, s"
    print_table(
        ["backend", searching, pruning, "to auto's", "to auto's "],
        rows,
        title=f"one pass of 210 layers each, and {given.passes} passes",
    )


def _apart(backend: str, formulas: int, passes: int) -> list[float]:
    """Seconds of both kinds of work in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        arguments = ["--backend", backend, "--formulas", str(formulas), "--passes", str(passes)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.backends", *arguments],
            env={**os.environ, **caches, "GPPRUNE_BENCHMARK_CACHE": folder},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return [float(one) for one in json.loads(done.stdout)]


def _seconds(backend: str, formulas: int, passes: int) -> list[float]:
    layers = linear_layers(load_model("smollm2").model)
    os.environ["GPPRUNE_CACHE"] = os.environ["GPPRUNE_BENCHMARK_CACHE"]
    weights = [layer.weight.detach() for layer in layers.values()]
    machine.built()

    def timed(work: Iterable[Formula], passes: int) -> float:
        start = time.perf_counter()
        for formula in work:
            _score(formula, backend, weights, given, passes)
        return time.perf_counter() - start

    shapes = {weight.shape for weight in weights}
    given = {shape: {**_measured(shape), "out": torch.empty(shape)} for shape in shapes}
    few = [published[name] for name in FEW]
    return [timed(list(distinct(formulas)), 1), timed(few, passes)]


@torch.no_grad()
def _score(
    formula: Formula,
    backend: str,
    weights: list[Tensor],
    given: Mapping[torch.Size, Mapping[str, Tensor]],
    passes: int,
) -> None:
    score = kernel(formula, backend, elements=passes * sum(w.numel() for w in weights))
    for _ in range(passes):
        for weight in weights:
            score(W=weight, **given[weight.shape])


def _measured(shape: torch.Size) -> dict[str, Tensor]:
    """Statistics that no calibration is needed for: what they are costs no time."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.rand(size, generator=generator) + 0.1 for size in (shape[1], shape[0], shape)]
    return {"X": draw[0], "Y": draw[1], "G": 1e-3 * draw[2]}


if __name__ == "__main__":
    main()
