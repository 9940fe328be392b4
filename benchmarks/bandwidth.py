"""Bytes a second of kernels on a GPU, against a copy on the device of as many bytes.

    python -m benchmarks.bandwidth [--size 8192] [--device cpu] [--backends inductor]

Weights and statistics are bfloat16, scores float32. What counts is what must move: in each sweep
over the matrix the inputs that it reads, once, and in the end the scores. A copy that moves as many
bytes reads half of them and writes half. The goal is 70 % of its speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks import made_up
from benchmarks.flags import parser_of, positive
from benchmarks.kernels import elementwise
from gpprune.compile import kernel, lower
from gpprune.compile.program import Load, sweeps
from gpprune.primitives import Formula, parse, published

BACKENDS = ("inductor", "blocked")
# Beside the published ones: OWL's ratio of a score to its row's mean, without the threshold.
REDUCING = {
    "ri": published["ri"],
    "ria": published["ria"],
    "row ratio": parse("div(mul(abs(W), X), rowmean(mul(abs(W), X)))"),
    "row sum": parse("mul(abs(W), rowsum(abs(W)))"),
}
SIZES = {"cuda": 8192, "cpu": 2048}
CALLS = 10  # between two events: a call's way through Python overlaps with the one before
REPEATS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("bandwidth", __doc__)
    parser.add_argument("--size", type=positive, help=f"by default, by device: {SIZES}")
    parser.add_argument("--device", choices=sorted(SIZES), default="cuda")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("bandwidth: unmeasured, since there is no CUDA device (--device cpu runs the same)")
        return
    measure(given.size or SIZES[given.device], torch.device(given.device), given.backends)


def measure(size: int, device: torch.device, backends: Sequence[str]) -> None:
    """Print gigabytes a second, and their ratio to the copy's.

    Args:
        size: of the layer, which is square.
        device: where it lies.
        backends: their names.
    """
    torch.manual_seed(0)
    weight = torch.rand(size, size, device=device) + 0.01
    drawn = {"W": weight, **made_up.statistics(size, size, device=device)}
    terminals = {name: value.bfloat16() for name, value in drawn.items()}
    out = torch.empty(size, size, device=device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"bfloat16 layer of {size} x {size} on {name}: GB/s, and the ratio to a copy's")
    print(f"{'':<12}{'MB':>7}{'copy':>8}" + "".join(f"{b:>10}{'ratio':>7}" for b in backends))
    plain = {name: formula for name, formula in published.items() if elementwise(formula)}
    for label, formula in {**plain, **REDUCING}.items():
        moved = bytes_moved(formula, terminals, out)
        copy = copied(moved, device)
        line = f"{label:<12}{moved / 1e6:>7.0f}{moved / copy / 1e9:>8.1f}"
        for backend in backends:
            taken = seconds(partial(kernel(formula, backend), **terminals, out=out), device)
            line += f"{moved / taken / 1e9:>10.1f}{copy / taken:>7.2f}"
        print(line, flush=True)


def bytes_moved(formula: Formula, terminals: Mapping[str, Tensor], out: Tensor) -> int:
    """What the sweeps read of the inputs, and the scores; a vector once."""
    program = lower(formula)
    loads = {p: i.name for p, i in enumerate(program.instructions) if isinstance(i, Load)}
    matrices = [loads[p] for sweep in sweeps(program) for p in sweep.needed if p in loads]
    vectors = program.terminals - set(matrices)
    return out.nbytes + sum(terminals[name].nbytes for name in [*matrices, *vectors])


def copied(moved: int, device: torch.device) -> float:
    """Seconds of a copy that reads and writes as many bytes together."""
    source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return seconds(lambda: target.copy_(source), device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The least of a few timings of a call among others, after some to warm up."""
    for _ in range(3):
        run()
    return min(_together(run, device) for _ in range(REPEATS)) / CALLS


def _together(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of all calls, by the device's own clock where it has one."""
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(CALLS):
            run()
        return time.perf_counter() - start
    before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    before.record()
    for _ in range(CALLS):
        run()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


if __name__ == "__main__":
    main()
