"""Candidates an hour on a model: ours against the loop of the published repositories.

    python -m benchmarks.candidates [--model smollm2] [--windows 8] [--length 512]

Each candidate is pruned by and judged on all windows. The rival evaluates the tree node by node,
sorts every row and runs the model in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.flags import add_length, add_model, parser_of, positive
from benchmarks.rival import eager, sorted_mask
from benchmarks.subject import workbench
from gpprune.discover import Workbench
from gpprune.evals import MetricMasking, ModelFitness
from gpprune.primitives import Formula, published

SPARSITY = 0.5
FORMULAS = ("wanda", "ria", "pruner-zero")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("candidates", __doc__)
    add_model(parser)
    parser.add_argument("--windows", type=positive, default=8)
    add_length(parser)
    given = parser.parse_args(arguments)
    measure(given.model, given.windows, given.length)


def measure(model: str = "smollm2", count: int = 8, length: int = 512) -> None:
    """Print candidates an hour at full fidelity, and the ratio.

    Args:
        model: what `gpprune.load_model` takes.
        count: how many windows are judged.
        length: tokens a window.
    """
    bench = workbench(model, length, count)
    judged = bench.windows("validation")
    masking = MetricMasking(bench.loaded.model, bench.statistics(), sparsity=SPARSITY)
    fitness = ModelFitness(masking, judged, dtype=bench.dtype)
    ours = _seconds(lambda formula: fitness.prepare(formula.canonical("row"))(0, count))
    dense = {name: layer.weight.clone() for name, layer in bench.layers.items()}
    rival = _seconds(lambda formula: _published_loop(bench, dense, judged, formula))
    print(f"candidates an hour on {model}, {count} windows of {length} tokens, all judged")
    print(f"gpprune {3600 * len(FORMULAS) / ours:.0f}")
    print(
        f"eager tree, stable sorts, float32 {3600 * len(FORMULAS) / rival:.0f}  "
        f"ratio {rival / ours:.2f}"
    )


def _seconds(judge: Callable[[Formula], object]) -> float:
    start = time.perf_counter()
    for name in FORMULAS:
        judge(published[name])
    return time.perf_counter() - start


@torch.no_grad()
def _published_loop(
    bench: Workbench, dense: Mapping[str, Tensor], judged: Tensor, formula: Formula
) -> None:
    model: Any = bench.loaded.model
    for name, layer in bench.layers.items():
        scores = eager(formula, {**bench.statistics()[name], "W": dense[name]})
        layer.write(dense[name].masked_fill(sorted_mask(scores, SPARSITY), 0))
    for window in judged:
        logits = model(window[None]).logits[0, :-1].float()
        cross_entropy(logits, window[1:])


if __name__ == "__main__":
    main()
