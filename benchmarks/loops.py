"""Candidates an hour: the loops of the published searches against searches of ours, one text.

    python -m benchmarks.loops [--model smollm2] [--samples 8] [--windows 8] [--length 2048]
        [--candidates 2] [--seconds 300] [--ours WINDOWS LENGTH SAMPLES]

DSA's loop calibrates on the dense model for the allocation and again while it prunes block by
block, then judges every window in float32. Pruner-Zero's measures gradients once, and then does the
same but for the first calibration. Both are rebuilt from gpprune's own parts, kernels and masks
included, so that loops are compared and not implementations. Ours are searches of the command
line's settings, first on the same sequences and windows, then on as many as the command line takes,
or as ``--ours`` says. Their calibration is not counted; nor is the time of Pruner-Zero's gradients.
All have one seed.
"""

from __future__ import annotations

import copy
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.flags import add_length, add_model, add_ours, of_size, parser_of, positive
from benchmarks.shown import print_table
from gpprune.discover import AllocationGoal, Goal, MetricGoal
from gpprune.discover.search import ready
from gpprune.discover.workbench import Workbench
from gpprune.gp import PRESETS, SearchEvent, Trial, evolve
from gpprune.primitives import Formula
from gpprune.prune import load_model, prune_model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("loops", __doc__)
    add_model(parser)
    parser.add_argument("--samples", type=positive, default=8, help="calibration sequences")
    parser.add_argument("--windows", type=positive, default=8)
    add_length(parser, 2048)
    parser.add_argument("--candidates", type=positive, default=2, help="of each published loop")
    parser.add_argument("--seconds", type=positive, default=300, help="of each search of ours")
    add_ours(parser)
    given = parser.parse_args(arguments)
    rows = _rows(given)
    columns = ["search for", "its loop", "of", "gpprune", "ratio", "on its own", "ratio"]
    title = f"candidates an hour on {given.model}, {given.windows} windows of {given.length} tokens"
    print_table(columns, rows, title=title)


def _rows(given: Namespace) -> list[list[str]]:
    amounts = (given.windows, given.length, given.samples)
    loaded = load_model(given.model, device="cpu")
    rows = []
    goals: list[tuple[Goal, str]] = [
        (AllocationGoal(model=given.model), "DSA"),
        (MetricGoal(model=given.model, sparsity=0.5), "Pruner-Zero"),
    ]
    for goal, rival in goals:
        same = replace(goal, texts=of_size(goal.texts, amounts))
        bench = ready(same, loaded)
        theirs = _published(same, bench, given.candidates)
        own = replace(goal, texts=of_size(goal.texts, given.ours))
        searched = [
            _searched(same, bench, given.seconds),
            _searched(own, ready(own, loaded), given.seconds),
        ]
        row = [own.kind, f"{3600 / theirs:.0f}", rival]
        for ours in searched:
            row += [f"{3600 / ours:.0f}", f"{theirs / ours:.1f}"]
        rows.append(row)
        print(*row, flush=True)  # the next one takes minutes
    return rows


class PublishedLoop:
    """A fitness that judges a candidate as the published code does."""

    def __init__(self, goal: Goal, bench: Workbench) -> None:
        self.goal, self.bench = goal, bench
        self.windows = bench.windows("validation", spread=goal.spread)
        self.cases = len(self.windows)

    def prepare(self, formula: Formula) -> Trial:
        """Prune the model block by block; DSA calibrates once before that."""
        work: Any = copy.deepcopy(self.bench.loaded.model)
        allocates = isinstance(self.goal, AllocationGoal)
        dense = None if allocates else self.bench.statistics()  # gradients
        tokens = self.bench.calibration()
        prune_model(work, self.goal.recipe(formula), tokens, order="sequential", dense=dense)

        @torch.no_grad()
        def trial(start: int, stop: int) -> list[float]:
            return [
                float(cross_entropy(work(window[None]).logits[0, :-1].float(), window[1:]))
                for window in self.windows[start:stop]
            ]

        return trial


def _published(goal: Goal, bench: Workbench, count: int) -> float:
    """Seconds a candidate of the published loop."""
    formulas = _turns([*goal.seeds().values()])
    loop = PublishedLoop(goal, bench)
    start = time.perf_counter()
    for _ in range(count):
        loop.prepare(next(formulas))(0, loop.cases)
    return (time.perf_counter() - start) / count


def _turns(formulas: Sequence[Formula]) -> Iterator[Formula]:
    while True:
        yield from formulas


def _searched(goal: Goal, bench: Workbench, limit: float) -> float:
    """Seconds a candidate of a search that ends by its time limit."""
    events: list[SearchEvent] = []
    fitness = goal.fitness(bench)
    result = evolve(
        goal.language,
        fitness,
        settings=PRESETS[goal.preset].replaced(generations=1000, time_limit=limit),
        seeds=goal.seeds(),
        canonical=goal.canonical,
        fingerprint=fitness.fingerprint,
        observer=events.append,
    )
    return events[-1].seconds / result.evaluated


if __name__ == "__main__":
    main()
