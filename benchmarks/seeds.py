"""Allocation search on SmolLM2-135M: five seeds of evolution, and of random search beside them.

    python -m benchmarks.seeds RUNS [--sparsity 0.7] [--seeds 5] [--generations 7]

Every search judges as many candidates. All share one calibration, one ranking of Wanda's scores
and what was judged before, so that ten searches take minutes; each leaves a run directory in RUNS,
for `gpprune report RUNS/* --plot`. The table is of test text, which no search sees.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gpprune.cli.console import print_table, progress
from gpprune.cli.evolve import LAYERED_LENGTH, LAYERED_SAMPLES, LAYERED_WINDOWS
from gpprune.cli.goals import AllocationGoal
from gpprune.cli.problem import Texts, Workbench
from gpprune.cli.report import describe
from gpprune.evals import AllocationFitness
from gpprune.gp import PRESETS, RunDirectory, evolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--generations", type=int, default=7)
    given = parser.parse_args()
    texts = Texts(
        windows=LAYERED_WINDOWS, window_length=LAYERED_LENGTH, calibration_samples=LAYERED_SAMPLES
    )
    goal = AllocationGoal(texts, sparsity=given.sparsity, dtype="auto")
    with progress() as report:
        reads = [("wikitext2", "validation"), ("wikitext2", "calibration")]
        bench = Workbench(goal.model, goal.dtype, texts, report, reads=reads)
        fitness = goal.fitness(bench)
    rows: list[list[str]] = []
    for strategy in ("evolution", "random"):
        for seed in range(given.seeds):
            name = f"{strategy}-{seed}"
            row = _search(
                goal, bench, fitness, given.runs / name, strategy, seed, given.generations
            )
            rows.append([name, *row])
            print(name, *row, flush=True)
    print_table(
        ["search", "candidates", "seconds", "validation", "test", "best published", "its test"],
        rows,
        title=f"Wanda at {given.sparsity:g}, {texts.windows} windows of {texts.window_length}",
    )


def _search(
    goal: AllocationGoal,
    bench: Workbench,
    fitness: AllocationFitness,
    path: Path,
    strategy: str,
    seed: int,
    generations: int,
) -> list[str]:
    changes = {"strategy": strategy, "seed": seed, "generations": generations}
    settings = PRESETS["allocation"].replaced(**changes)
    run = (
        RunDirectory.open(path)
        if path.exists()
        else RunDirectory.create(path, settings, goal.stored())
    )
    with run:
        result = evolve(
            goal.language,
            fitness,
            settings=settings,
            seeds=goal.seeds(),
            canonical=goal.canonical,
            fingerprint=fitness.fingerprint,
            run=run,
        )
        document = describe(result, goal, bench, fitness, path, all_rivals=False)
    (path / "report.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    best = next(row for row in document["formulas"] if row["name"] == "evolved 1")
    rival = document["formulas"][0]
    seconds = sum(outcome.seconds for outcome in result.outcomes)
    return [
        str(result.evaluated),
        f"{seconds:.0f}",
        f"{best['validation_perplexity']:.2f}",
        f"{best['test_perplexity']:.2f}",
        rival["name"],
        f"{rival['test_perplexity']:.2f}",
    ]


if __name__ == "__main__":
    main()
