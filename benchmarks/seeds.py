"""Allocation search on SmolLM2-135M: five seeds of evolution, and of random search beside them.

    python -m benchmarks.seeds RUNS [--sparsity 0.7] [--seeds 0 1 2 3 4] [--generations 7]

Every search judges as many candidates. All share one calibration, one ranking of Wanda's scores
and what was judged before, so that ten searches take an hour or two; each is a run directory in
RUNS, for `gpprune report RUNS/* --plot`, and one that is there is gone on with. Then the best of
each and the published allocations are judged on test text, which no search sees: on 20 windows from
all over it and on its first 10, the published codes' habit, which are of three articles.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from benchmarks.flags import add_length, add_model, parser_of, positive
from benchmarks.shown import print_table, progress
from gpprune.discover import AllocationGoal, Texts, Workbench
from gpprune.discover.rivals import Choice
from gpprune.discover.search import ready
from gpprune.discover.stored import check_digests, problem_of, restored
from gpprune.errors import UsageError
from gpprune.evals import ModelFitness
from gpprune.gp import PRESETS, RunDirectory, SearchResult, SearchSettings, evolve
from gpprune.primitives import parse

DEFAULTS = AllocationGoal()


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    goal = _goal(given)
    with progress() as report:
        bench = ready(goal, progress=report)
        fitness = goal.fitness(bench, report)
    searches = _Searches(goal, fitness, bench)
    judged = _Judged(goal, fitness, bench)
    rows = []
    for strategy in given.strategies:
        for seed in given.seeds:
            name = f"{strategy}-{seed}"
            settings = _settings(given, strategy, seed)
            result = searches.search(given.runs / name, settings)
            rows.append([*_searched(name, result), *judged.winner(name, result)])
            print(*rows[-1], flush=True)
    for rival in goal.rivals():
        choice = min(rival.choices, key=judged.validation)
        rows.append([choice.name, "", "", *judged.row(choice)])
        print(*rows[-1], flush=True)
    texts = goal.texts
    print_table(
        ["allocation", "candidates", "seconds", "validation", "test", "first 10"],
        rows,
        title=f"Wanda at {goal.sparsity:g}, {texts.windows} windows of {texts.window_length}",
    )


def _parser() -> ArgumentParser:
    texts = DEFAULTS.texts
    parser = parser_of("seeds", __doc__)
    parser.add_argument("runs", type=Path, metavar="RUNS")
    parser.add_argument("--sparsity", type=float, default=DEFAULTS.sparsity)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--generations", type=int, default=7)
    parser.add_argument("--population", type=positive, help="by default as the preset's")
    parser.add_argument("--offspring", type=positive, help="by default as the preset's")
    parser.add_argument("--strategies", nargs="+", default=["evolution", "random"])
    add_model(parser)
    parser.add_argument("--text", default=texts.text, help="judged and calibrated on")
    parser.add_argument("--windows", type=positive, default=texts.windows)
    add_length(parser, texts.window_length)
    parser.add_argument("--samples", type=positive, default=texts.calibration_samples)
    return parser


def _goal(given: Namespace) -> AllocationGoal:
    texts = Texts(
        text=given.text,
        calibration_text=given.text,
        windows=given.windows,
        window_length=given.length,
        calibration_samples=given.samples,
    )
    return AllocationGoal(texts, model=given.model, sparsity=given.sparsity)


def _settings(given: Namespace, strategy: str, seed: int) -> SearchSettings:
    sizes = {name: getattr(given, name) for name in ("generations", "population", "offspring")}
    wanted = {name: size for name, size in sizes.items() if size is not None}
    return PRESETS[DEFAULTS.preset].replaced(strategy=strategy, seed=seed, **wanted)


def _searched(name: str, result: SearchResult) -> list[str]:
    seconds = sum(outcome.seconds for outcome in result.outcomes)
    return [name, str(result.evaluated), f"{seconds:.0f}"]


class _Judged:
    """Perplexities of allocations on validation text and on windows of test text."""

    def __init__(self, goal: AllocationGoal, fitness: ModelFitness, bench: Workbench) -> None:
        self.goal = goal
        self.tests = [bench.test_windows(spread=True), bench.test_windows()]
        settings = {choice.setting for rival in goal.rivals() for choice in rival.choices}
        self.fitnesses = {unit: goal.variant(fitness, bench, unit) for unit in settings}
        self.fitnesses[goal.own_setting] = fitness

    def validation(self, choice: Choice) -> float:
        """On what the searches judge on."""
        fitness = self.fitnesses[choice.setting]
        losses = fitness.prepare(self.goal.canonical(choice.formula))(0, fitness.cases)
        return math.exp(math.fsum(losses) / len(losses))

    def row(self, choice: Choice) -> list[str]:
        """On validation text and on both kinds of test windows."""
        fitness = self.fitnesses[choice.setting]
        tested = fitness.evaluate(self.goal.canonical(choice.formula), *self.tests)
        found = [self.validation(choice), *(evaluation.figure for evaluation in tested)]
        return [f"{perplexity:.2f}" for perplexity in found]

    def winner(self, name: str, result: SearchResult) -> list[str]:
        """The best that a search has evolved; blanks where it has evolved none."""
        evolved = result.archive.evolved(1)
        if not evolved:
            return [""] * (1 + len(self.tests))
        best = parse(evolved[0].text, self.goal.language)
        return self.row(Choice(name, best, self.goal.own_setting))


class _Searches:
    """Searches of one goal that share a fitness, each in a run directory."""

    def __init__(self, goal: AllocationGoal, fitness: ModelFitness, bench: Workbench) -> None:
        self.goal = goal
        self.fitness = fitness
        self.bench = bench
        self.problem = problem_of(goal, bench)

    def search(self, path: Path, settings: SearchSettings) -> SearchResult:
        """Search, or go on with a run that is there."""
        with self._run(path, settings) as run:
            return evolve(
                self.goal.language,
                self.fitness,
                settings=settings,
                seeds=self.goal.seeds(),
                canonical=self.goal.canonical,
                fingerprint=self.fitness.fingerprint,
                run=run,
            )

    def _run(self, path: Path, settings: SearchSettings) -> RunDirectory:
        if not path.exists():
            return RunDirectory.create(path, settings, self.problem)
        run = RunDirectory.open(path)
        stored = restored(run).stored()
        other = sorted(name for name in stored if stored[name] != self.problem[name])
        if other:
            raise UsageError(
                f"the run {path} is of another {' and another '.join(other)}: choose another "
                "directory for these runs"
            )
        check_digests(run, self.bench)
        return run


if __name__ == "__main__":
    main()
