"""What each backend takes in all, compiling included, and whether the chooser picks well.

    python -m benchmarks.backends [--formulas 24] [--passes 40] [--model smollm2] [--layers 210]
        [--backends ...]

Two kinds of work over the linear layers of a model: a search's, which scores them once by
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import made_up
from benchmarks.flags import add_layers, add_model, parser_of, positive
from benchmarks.search import distinct
from benchmarks.shown import print_table
from benchmarks.subject import first_layers
from gpprune.compile import kernel
from gpprune.compile.cpp import machine
from gpprune.primitives import Formula, published
from gpprune.prune import linear_layers, load_model

BACKENDS = ("blocked", "inductor", "machine", "generated", "auto")
FEW = ("wanda", "ria", "pruner-zero")
_CACHE = "GPPRUNE_BENCHMARK_CACHE"  # where a child keeps what it builds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("backends", __doc__)
    parser.add_argument("--formulas", type=positive, default=24, help="of a search")
    parser.add_argument("--passes", type=positive, default=40, help="over the model, of pruning")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=BACKENDS,
        default=BACKENDS,
        help="ratios are to the last one's seconds",
    )
    add_model(parser)
    add_layers(parser)
    parser.add_argument("--alone", choices=BACKENDS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.alone:
        print(json.dumps(_seconds(given)))
        return
    count = len(
        first_layers(linear_layers(load_model(given.model, device="cpu").model), given.layers)
    )
    found = {backend: _apart(backend, given) for backend in given.backends}
    last = given.backends[-1]
    print_table(
        [
            *("backend", f"{given.formulas} formulas, s", f"{len(FEW)} formulas, s"),
            *(f"to {last}'s", f"to {last}'s "),
        ],
        [_row(backend, times, found[last]) for backend, times in found.items()],
        title=f"one pass of {count} layers each, and {given.passes} passes",
    )


def _row(backend: str, times: list[float], base: list[float]) -> list[str]:
    ratios = (one / other for one, other in zip(times, base, strict=True))
    return [backend, *(f"{one:.1f}" for one in times), *(f"{ratio:.2f}" for ratio in ratios)]


def _apart(backend: str, given: argparse.Namespace) -> list[float]:
    """Seconds of both kinds of work in a process of its own, whose caches are empty.

    The parent has loaded the model once, so that it is unpacked where the user's caches are.
    """
    arguments = ["--alone", backend, "--model", given.model]
    for name in ("formulas", "passes", "layers"):
        if getattr(given, name) is not None:
            arguments += [f"--{name}", str(getattr(given, name))]
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", _CACHE: folder}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.backends", *arguments],
            env={**os.environ, **caches},
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return [float(one) for one in json.loads(done.stdout)]


def _seconds(chosen: argparse.Namespace) -> list[float]:
    layers = first_layers(
        linear_layers(load_model(chosen.model, device="cpu").model), chosen.layers
    )
    os.environ["GPPRUNE_CACHE"] = os.environ[_CACHE]
    weights = [layer.weight.detach() for layer in layers.values()]
    machine.built()
    shapes = {weight.shape for weight in weights}
    given = {shape: {**_statistics(shape), "out": torch.empty(shape)} for shape in shapes}

    def timed(work: Iterable[Formula], passes: int) -> float:
        start = time.perf_counter()
        for formula in work:
            _score(formula, chosen.alone, weights, given, passes)
        return time.perf_counter() - start

    few = [published[name] for name in FEW]
    return [timed(list(distinct(chosen.formulas)), 1), timed(few, chosen.passes)]


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


def _statistics(shape: torch.Size) -> dict[str, Tensor]:
    """The same for layers of one shape, in every process."""
    return made_up.statistics(*shape, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
