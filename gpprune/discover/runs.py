"""What finished or running searches have found, read from their run directories."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from gpprune.compile import render
from gpprune.discover.report import reported
from gpprune.errors import GppruneError
from gpprune.evals import LOSSES, NEXT_TOKEN, Loss, ShownTable, shown
from gpprune.files import expanded
from gpprune.gp import Archive, Outcome, RunDirectory, RungRanks, Screening, front
from gpprune.primitives import LANGUAGES, METRIC, Formula, Language


@dataclass(frozen=True)
class RunSummary:
    """One search.

    Attributes:
        name: its directory's name, or the whole path where two are called alike.
        goal: what was searched for.
        sparsity: at which share of pruned weights; None where the run does not say.
        loss: what was measured.
        strategy: "evolution" or "random".
        seed: the search's seed.
        candidates: how many formulas were judged.
        best: the best evolved formula; None before there is one.
        validation: its figure on the text that the search judged on, as the report has it or,
            before there is one, the search.
        test: its figure on test text, where the run has been judged there.
        screening: what the estimates of its candidates were worth; None where there are none.
        rungs: how far each rung of the race ranks as all cases do.
        path: (candidates judged, least figure by then), a point for each improvement; the last
            point is the end of the run.
    """

    name: str
    goal: str
    sparsity: float | None
    loss: Loss
    strategy: str
    seed: int
    candidates: int
    best: Formula | None
    validation: float | None
    test: float | None
    screening: Screening | None
    rungs: tuple[RungRanks, ...]
    path: tuple[tuple[int, float], ...]

    @property
    def race_line(self) -> str | None:
        """How far the rungs of the race rank as all cases do, in a sentence."""
        told = [rung for rung in self.rungs if rung.kendall_tau is not None]
        if not told:
            return None
        cases = ", ".join(str(rung.cases) for rung in told)
        taus = ", ".join(f"{rung.kendall_tau:.2f}" for rung in told)
        return (
            f"by the first {cases} {'case' if cases == '1' else 'cases'} the {told[0].judged} "
            f"formulas that were judged in full rank as by all with Kendall's tau {taus}"
        )

    @property
    def closed_form(self) -> str | None:
        """The best evolved formula on one line."""
        return None if self.best is None else render(self.best.canonical(None), "line")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "run": self.name,
            "goal": self.goal,
            "sparsity": self.sparsity,
            "loss": self.loss.name,
            "strategy": self.strategy,
            "seed": self.seed,
            "candidates": self.candidates,
            f"validation_{self.loss.figure}": self.validation,
            f"test_{self.loss.figure}": self.test,
            "estimate": None if self.screening is None else self.screening.as_dict(),
            "rungs": [asdict(rung) for rung in self.rungs],
            "formula": None if self.best is None else self.best.text,
            "closed_form": self.closed_form,
        }


def summarise(runs: Iterable[str | Path]) -> list[RunSummary]:
    """Searches side by side.

    Raises:
        UsageError: a path is no run directory.
        GppruneError: a run or its report is damaged.
    """
    found: list[RunSummary] = []
    for path in map(expanded, runs):
        taken = {summary.name for summary in found}
        short, whole = path.absolute().name, str(path.absolute())
        name = next(name for name in _names(short, whole) if name not in taken)
        with RunDirectory.open(path) as run:
            found.append(_summary(name, run))
    return found


def _names(short: str, whole: str) -> Iterator[str]:
    yield from (short, whole)
    yield from (f"{whole} ({number})" for number in count(2))


def summary_table(found: Sequence[RunSummary]) -> ShownTable:
    """A table for a reader: a row a search."""
    columns = ["run", "goal", "sparsity", "strategy", "seed", "candidates", "validation", "test"]
    figures = dict.fromkeys(summary.loss.figure for summary in found)
    title = f"the best evolved formula of each search: {' or '.join(figures)}"
    rows = [
        [
            summary.name,
            summary.goal,
            "" if summary.sparsity is None else f"{summary.sparsity:g}",
            summary.strategy,
            str(summary.seed),
            str(summary.candidates),
            shown(summary.validation),
            shown(summary.test),
        ]
        for summary in found
    ]
    return title, columns, rows, ["sparsity", *columns[4:]]


def _summary(name: str, run: RunDirectory) -> RunSummary:
    loss, language = loss_of(run), language_of(run)
    outcomes = run.outcomes(language)
    best = next(iter(Archive(outcomes).evolved(1)), None)
    validation, test = reported(run.path, None if best is None else best.text, loss.figure)
    if validation is None and best is not None:
        validation = loss.shown(best.fitness)
    return RunSummary(
        name=name,
        goal=str(run.problem.get("goal")),
        sparsity=run.problem.get("sparsity"),
        loss=loss,
        strategy=run.search.strategy,
        seed=run.search.seed,
        candidates=len(outcomes),
        best=None if best is None else best.parsed(language),
        validation=validation,
        test=test,
        screening=Screening.of(outcomes),
        rungs=RungRanks.of(outcomes, run.search.first_rung),
        path=best_so_far(outcomes, loss),
    )


def loss_of(run: RunDirectory) -> Loss:
    """What a run's candidates were judged by; runs of before there was a choice say nothing."""
    return LOSSES.find(str(run.problem.get("loss", NEXT_TOKEN.name)))


def language_of(run: RunDirectory) -> Language:
    """The language of a run's formulas; a metric's where it does not say."""
    return LANGUAGES.get(str(run.problem.get("goal"))) or METRIC


def best_so_far(outcomes: Iterable[Outcome], loss: Loss) -> tuple[tuple[int, float], ...]:
    """(candidates judged, least figure by then), a point for each improvement.

    The last point is the end of the run.

    Args:
        outcomes: in the order in which they were judged.
        loss: what they were judged by.
    """
    points: list[tuple[int, float]] = []
    best = math.inf
    count = 0
    for count, outcome in enumerate(outcomes, start=1):
        if outcome.full and outcome.fitness < best:
            best = outcome.fitness
            points.append((count, loss.shown(best)))
    if points and points[-1][0] < count:
        points.append((count, points[-1][1]))
    return tuple(points)


def best_of(path: str | Path, count: int) -> tuple[Loss, list[tuple[Outcome, Formula]]]:
    """The best formulas that a run evolved, no two of which differ in their constants alone.

    Before there is one, the best that it began with.

    Args:
        path: the run directory.
        count: how many.

    Returns:
        What they were judged by, and each outcome with its formula, best first.

    Raises:
        GppruneError: nothing has been fully judged yet.
    """
    loss, language, archive = _read(path)
    found = archive.evolved(count) or archive.best(count, distinct=True)
    return loss, [(outcome, outcome.parsed(language)) for outcome in found]


def front_of(path: str | Path) -> tuple[Loss, list[tuple[int, Outcome, Formula]]]:
    """The front of a run's loss against length, see `gpprune.gp.front`.

    Args:
        path: the run directory.

    Returns:
        What candidates were judged by, and number of nodes, outcome and formula, shortest first.

    Raises:
        GppruneError: nothing has been fully judged yet.
    """
    loss, language, archive = _read(path)
    found = front(archive.outcomes, language)
    return loss, [(size, outcome, outcome.parsed(language)) for size, outcome in found]


def _read(path: str | Path) -> tuple[Loss, Language, Archive]:
    with RunDirectory.open(path) as run:
        loss, language = loss_of(run), language_of(run)
        archive = Archive(run.outcomes(language))
    if archive.champion is None:
        raise GppruneError(f"the run {path} has no fully judged formula yet: resume it first")
    return loss, language, archive
