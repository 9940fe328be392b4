"""What a search pays for scores and masks: distinct formulas over all layers of a model.

    python -m benchmarks.search [--count 1000] [--sample 40] [--model smollm2] [--layers 210]

Every formula is compiled, scores all linear layers and gives their masks at 50 % of each row;
nothing is judged. The rival, eager trees and stable sorts of rows, does the same for the first
`--sample` formulas only, which would else take hours: the ratio is of seconds a formula, on these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.flags import add_layers, add_length, add_model, parser_of, positive
from benchmarks.kernels import drawn, varies
from benchmarks.rival import eager, sorted_mask
from benchmarks.subject import first_layers, workbench
from gpprune.compile import kernel
from gpprune.primitives import Formula
from gpprune.prune import layer_scores, prune_mask

SPARSITY = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("search", __doc__)
    parser.add_argument("--count", type=positive, default=1000)
    parser.add_argument("--sample", type=positive, default=40)
    add_model(parser)
    add_layers(parser)
    add_length(parser)
    given = parser.parse_args(arguments)
    bench = workbench(given.model, given.length)
    measured = bench.statistics()
    layers = first_layers(bench.layers, given.layers)
    largest = max(layer.weight.numel() for layer in layers.values()) * 4
    buffer = torch.zeros(largest // 4)  # written, so that it counts before and once

    @torch.no_grad()
    def ours(formula: Formula) -> None:
        score = kernel(formula)
        for name, layer in layers.items():
            out = buffer[: layer.weight.numel()].view(layer.weight.shape)
            prune_mask(layer_scores(score, layer.weight, measured[name], out), SPARSITY, "row")

    @torch.no_grad()
    def theirs(formula: Formula) -> None:
        for name, layer in layers.items():
            terminals = {**measured[name], "W": layer.weight}
            sorted_mask(eager(formula, terminals), SPARSITY)

    formulas = list(distinct(given.count))
    before = _peak(reset=True)
    start = time.perf_counter()
    each = [_seconds(ours, [formula]) for formula in formulas]
    total = time.perf_counter() - start
    print(f"{len(formulas)} formulas over {len(layers)} layers: {total:.1f} s, compiling included")
    if before is not None:
        extra = (_peak() or 0) - before + buffer.nbytes
        print(f"peak extra memory {extra / largest:.2f} times the largest layer ({largest} bytes)")
    sample = formulas[: given.sample]
    rival = _seconds(theirs, sample)
    mine = sum(each[: len(sample)])
    print(
        f"of these the first {len(sample)}: gpprune {mine:.2f} s, eager trees and stable sorts "
        f"{rival:.2f} s, ratio {rival / mine:.2f}"
    )


def distinct(count: int) -> Iterator[Formula]:
    """Random formulas whose canonical forms, under rows, differ."""
    known: set[str] = set()
    for formula in drawn(100 * count):
        form = formula.canonical("row")
        if varies(form) and form.text not in known:
            known.add(form.text)
            yield form
        if len(known) == count:
            return


def _seconds(run: Callable[[Formula], None], formulas: Iterable[Formula]) -> float:
    start = time.perf_counter()
    for formula in formulas:
        run(formula)
    return time.perf_counter() - start


def _peak(*, reset: bool = False) -> int | None:
    """The greatest resident size so far, or since the last reset, in bytes; None if not told."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
