"""What the race saves and what it drops wrongly: a search judged in full, and raced on paper.

    python -m benchmarks.replay RUN [--kind metric] [--seconds 900] [--seed 0]

A search at the command line's settings judges every candidate on all windows; it is made in RUN, or
read, if it is there. Then each of its offspring races on the losses that are known, against the bar
of its generation: by the variance of its own differences alone, and with what is usual weighed in.
One is dropped wrongly that is better than its bar over all windows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from benchmarks.flags import add_model, parser_of, positive
from benchmarks.shown import print_table, progress
from gpprune.discover import AllocationGoal, MetricGoal
from gpprune.discover.goals.goal import Goal
from gpprune.discover.search import ready
from gpprune.discover.stored import restored
from gpprune.gp import PRESETS, Outcome, RunDirectory, evolve
from gpprune.gp.archive import Archive
from gpprune.gp.engine import Engine
from gpprune.gp.fidelity import rungs
from gpprune.gp.paired import Bar

MANY = 10**6  # generations: the time ends a search


@dataclass(frozen=True)
class Rule:
    """How a race drops formulas."""

    name: str
    first: int
    usual: bool

    def cases(self, losses: Sequence[float], bar: Bar, z: float) -> int:
        """On how many cases it judges a formula with these losses."""
        known = bar if self.usual else replace(bar, usual=None)
        for stop in rungs(len(losses), self.first):
            if known.is_ahead(losses[:stop], z):
                return stop
        return len(losses)


RULES = (
    Rule("own variance, from 2 windows", 2, usual=False),
    Rule("own variance, from 1 window", 1, usual=False),
    Rule("usual weighed in, from 2 windows", 2, usual=True),
    Rule("usual weighed in, from 1 window", 1, usual=True),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("replay", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--kind", choices=("metric", "allocation"), default="metric")
    parser.add_argument("--seconds", type=positive, default=900)
    parser.add_argument("--seed", type=int, default=0)
    add_model(parser)
    given = parser.parse_args(arguments)
    if not given.run.exists():
        goal: Goal = AllocationGoal(model=given.model)
        if given.kind == "metric":
            goal = MetricGoal(model=given.model, pattern="layer")  # as the command line has it
        _search(given.run, goal, given.seconds, given.seed)
    with RunDirectory.open(given.run) as run:
        goal, outcomes = restored(run), run.outcomes()
        raced = [*_raced(run, goal, outcomes)]
        z = PRESETS[goal.preset].race_z
    if not raced:
        parser.error(f"{given.run} has no offspring that was judged in full: give more --seconds")
    cases = len(raced[0][0])
    better = [math.fsum(losses) < math.fsum(bar.losses) for losses, bar in raced]
    rows = []
    for rule in RULES:
        each = [rule.cases(losses, bar, z) for losses, bar in raced]
        wrong = sum(used < cases and good for used, good in zip(each, better, strict=True))
        rows.append([rule.name, f"{sum(each) / len(each):.2f}", f"{wrong} of {sum(better)}"])
    print_table(
        ["dropped by", "windows judged", "better ones dropped"],
        rows,
        title=f"{len(raced)} offspring of a search for {goal.kind}s, {cases} windows in all",
    )


def _search(path: Path, goal: Goal, seconds: int, seed: int) -> None:
    """Judge every candidate in full."""
    settings = PRESETS[goal.preset].replaced(
        generations=MANY, time_limit=seconds, seed=seed, race_z=math.inf
    )
    with progress() as report:
        bench = ready(goal, progress=report)
        fitness = goal.fitness(bench, report)
    with RunDirectory.create(path, settings, goal.stored()) as run:
        evolve(
            goal.language,
            fitness,
            run=run,
            seeds=goal.seeds(),
            canonical=goal.canonical,
            fingerprint=fitness.fingerprint,
        )


def _raced(
    run: RunDirectory, goal: Goal, outcomes: Sequence[Outcome]
) -> Iterator[tuple[Sequence[float], Bar]]:
    """The losses of every candidate that raced, and its bar."""
    told = (goal.language, run.search, goal.seeds(), goal.canonical, None)
    engine = Engine(*told, run.states(), Archive(outcomes))
    given = [outcome for outcome in outcomes if outcome.given]
    for generation, asked in groupby(outcomes, key=lambda outcome: outcome.generation):
        known = [outcome for outcome in outcomes if outcome.generation < generation] or given
        for bar in engine.bars(generation, known)[-1:]:
            own = (outcome for outcome in asked if outcome.full and not outcome.given)
            yield from ((outcome.losses, bar) for outcome in own)


if __name__ == "__main__":
    main()
