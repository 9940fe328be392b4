"""Allocation search on SmolLM2-135M: five seeds of evolution, and of random search beside them.

    python -m benchmarks.seeds RUNS [--sparsity 0.7] [--seeds 0 1 2 3 4] [--generations 7]

Every search judges as many candidates. All share one calibration, one ranking of Wanda's scores
and what was judged before, so that ten searches take an hour or two; each is a run directory in
RUNS, for `gpprune report RUNS/* --plot`, and one that is there is gone on with. Then the best of
each and the published allocations are judged on test text, which no search sees: on 20 windows from
all over it and on its first 10, the published codes' habit, which are of three articles.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from torch import Tensor

from gpprune.cli.console import print_table, progress
from gpprune.cli.evolve import LAYERED_LENGTH, LAYERED_SAMPLES, LAYERED_WINDOWS
from gpprune.cli.goals import AllocationGoal, Choice
from gpprune.cli.problem import Texts, Workbench
from gpprune.evals import AllocationFitness
from gpprune.gp import PRESETS, RunDirectory, SearchResult, evolve
from gpprune.primitives import parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--generations", type=int, default=7)
    parser.add_argument("--strategies", nargs="+", default=["evolution", "random"])
    given = parser.parse_args()
    texts = Texts(
        windows=LAYERED_WINDOWS, window_length=LAYERED_LENGTH, calibration_samples=LAYERED_SAMPLES
    )
    goal = AllocationGoal(texts, sparsity=given.sparsity, dtype="auto")
    with progress() as report:
        reads = [("wikitext2", "validation"), ("wikitext2", "calibration")]
        bench = Workbench(goal.model, goal.dtype, texts, report, reads=reads)
        fitness = goal.fitness(bench)
    judged = _Judged(goal, fitness, [bench.test_windows(spread=True), bench.test_windows()])
    rows = []
    for strategy in given.strategies:
        for seed in given.seeds:
            name = f"{strategy}-{seed}"
            changes = {"strategy": strategy, "seed": seed, "generations": given.generations}
            result = _search(goal, fitness, given.runs / name, changes)
            seconds = sum(outcome.seconds for outcome in result.outcomes)
            best = parse(result.archive.evolved(1)[0].text, goal.language)
            row = [name, str(result.evaluated), f"{seconds:.0f}"]
            rows.append([*row, *judged.row(Choice(name, best, goal.unit))])
            print(*rows[-1], flush=True)
    for rival in goal.rivals():
        best_choice = min(rival.choices, key=judged.validation)
        rows.append([best_choice.name, "", "", *judged.row(best_choice)])
        print(*rows[-1], flush=True)
    print_table(
        ["allocation", "candidates", "seconds", "validation", "test", "first 10"],
        rows,
        title=f"Wanda at {given.sparsity:g}, {texts.windows} windows of {texts.window_length}",
    )


class _Judged:
    """Perplexities of allocations on validation text and on windows of test text."""

    def __init__(self, goal: AllocationGoal, fitness: AllocationFitness, tests: list[Tensor]):
        self.goal = goal
        self.fitness = fitness
        self.tests = tests

    def validation(self, choice: Choice) -> float:
        fitness = self.fitness.under(unit=choice.way)
        losses = fitness.prepare(self.goal.canonical(choice.formula))(0, fitness.cases)
        return math.exp(math.fsum(losses) / len(losses))

    def row(self, choice: Choice) -> list[str]:
        fitness = self.fitness.under(unit=choice.way)
        tested = fitness.judge(self.goal.canonical(choice.formula), *self.tests)
        found = [self.validation(choice), *(judgement.perplexity for judgement in tested)]
        return [f"{perplexity:.2f}" for perplexity in found]


def _search(
    goal: AllocationGoal, fitness: AllocationFitness, path: Path, changes: dict[str, object]
) -> SearchResult:
    settings = PRESETS["allocation"].replaced(**changes)
    run = (
        RunDirectory.open(path)
        if path.exists()
        else RunDirectory.create(path, settings, goal.stored())
    )
    with run:
        return evolve(
            goal.language,
            fitness,
            settings=settings,
            seeds=goal.seeds(),
            canonical=goal.canonical,
            fingerprint=fitness.fingerprint,
            run=run,
        )


if __name__ == "__main__":
    main()
