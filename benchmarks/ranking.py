"""How far what a search may judge by ranks its best formulas as test text does.

    python -m benchmarks.ranking RUN... [--formulas 16] [--windows 8x512 8x512-spread 16x256-spread]
        [--losses kl reconstruction]

The best formulas of the runs, in turns, prune the model as the first run's search did. The
next-token loss is taken on windows of validation text, the first ones or, `-spread`, from all over
it; other losses on the last of these. Kendall's tau is to the next-token loss on every second of 20
windows from all over the test text; the other ten say what the test text itself knows. Beside it
stands how much worse than the best on test text the formula is that is best by that figure.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from benchmarks.flags import parser_of, positive
from benchmarks.shown import print_table, progress
from gpprune.discover.contenders import best_evolved
from gpprune.discover.goals.goal import Goal
from gpprune.discover.search import ready
from gpprune.discover.stored import restored
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN
from gpprune.gp import RunDirectory
from gpprune.gp.screen import kendall_tau
from gpprune.primitives import Formula
from gpprune.progress import Progress

TEST, OTHER_HALF = "test text", "the other half of the test text"


@dataclass(frozen=True)
class Amount:
    """So many windows of so many tokens, the first ones or from all over a text."""

    count: int
    length: int
    spread: bool

    def __str__(self) -> str:
        where = "spread" if self.spread else "the first"
        return f"{self.count} of {self.length}, {where}"


def amount(text: str) -> Amount:
    """An `Amount`, written 8x512 or 8x512-spread.

    Raises:
        ArgumentTypeError: it is none.
    """
    size, _, spread = text.partition("-")
    count, _, length = size.partition("x")
    if spread not in ("", "spread"):
        raise ArgumentTypeError(f"{text!r} is no number of windows: write 8x512 or 8x512-spread")
    return Amount(positive(count), positive(length), bool(spread))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("ranking", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--formulas", type=positive, default=16)
    amounts = ["8x512", "8x512-spread", "16x256-spread"]
    parser.add_argument("--windows", type=amount, nargs="+", default=[*map(amount, amounts)])
    parser.add_argument("--losses", nargs="*", default=["kl", "reconstruction"])
    given = parser.parse_args(arguments)
    goal, formulas = _found(given.runs, given.formulas)
    with progress() as report:
        figures = _figures(goal, formulas, given.windows, given.losses, report)
    wanted = figures.pop(TEST)
    order = sorted(range(len(formulas)), key=wanted.__getitem__)
    rows = []
    for name, found in figures.items():
        taus = (_tau(found, wanted, some) for some in (order, order[: len(order) // 2]))
        best = min(order, key=found.__getitem__)
        lost = 100 * math.expm1(wanted[best] - wanted[order[0]])
        rows.append([name, *(_shown(tau) for tau in taus), f"{lost:.1f} %"])
    low, high = (math.exp(wanted[at]) for at in (order[0], order[-1]))
    print_table(
        ["judged by", "tau", "of the better half", "lost"],
        rows,
        title=f"{len(formulas)} formulas, {low:.2f} to {high:.2f} of perplexity on test text",
    )


def _found(runs: Sequence[Path], count: int) -> tuple[Goal, list[Formula]]:
    """The first run's goal, by the next-token loss, and the best formulas of all, each once."""
    with ExitStack() as stack:
        opened = [stack.enter_context(RunDirectory.open(run)) for run in runs]
        goals = [restored(run) for run in opened]
        if len({goal.kind for goal in goals}) > 1:
            raise UsageError("the runs are of several kinds of formulas: give those of one")
        goal = replace(goals[0], loss=NEXT_TOKEN.name)
        each = [best_evolved(run, goal.language, count) for run in opened]
        turns = [o for turn in zip_longest(*each) for o in turn if o is not None]
        by_key = {outcome.key: outcome.parsed(goal.language) for outcome in turns}
        return goal, [*by_key.values()][:count]


def _figures(
    goal: Goal,
    formulas: Sequence[Formula],
    amounts: Sequence[Amount],
    losses: Sequence[str],
    report: Progress,
) -> dict[str, list[float]]:
    """By what is judged by, a figure a formula."""
    others = {name: LOSSES.find(name) for name in losses}
    bench = ready(goal, progress=report)
    fitness = goal.fitness(bench, report)
    measures = {n: loss.on(fitness.model, bench.loaded.model) for n, loss in others.items()}
    texts = [_windows(goal, bench, amount) for amount in amounts]
    test = bench.test_windows(spread=True)
    found: dict[str, list[float]] = {}
    for done, formula in enumerate(formulas):
        report("judging formulas", done, len(formulas))
        judged = fitness.evaluate(goal.canonical(formula), *texts, test[::2], test[1::2])
        names = [*(f"next-token loss, {amount}" for amount in amounts), TEST, OTHER_HALF]
        for name, evaluation in zip(names, judged, strict=True):
            found.setdefault(name, []).append(evaluation.mean)
        for name, measure in measures.items():
            each = [measure(window) for window in texts[-1]]
            found.setdefault(f"{name}, {amounts[-1]}", []).append(math.fsum(each) / len(each))
    report("judging formulas", len(formulas), len(formulas))
    return found


def _windows(goal: Goal, bench: Workbench, amount: Amount) -> Tensor:
    texts = replace(goal.texts, windows=amount.count, window_length=amount.length)
    return Workbench(bench.loaded, texts).windows("validation", spread=amount.spread)


def _tau(found: Sequence[float], wanted: Sequence[float], some: Sequence[int]) -> float | None:
    return kendall_tau([(found[at], wanted[at]) for at in some])


def _shown(tau: float | None) -> str:
    return "" if tau is None else f"{tau:.2f}"


if __name__ == "__main__":
    main()
