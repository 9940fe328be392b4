"""What became of a search: all that a page tells of it, read from its run directory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gpprune.discover.goals.goal import Goal
from gpprune.discover.report import REPORT_FILE
from gpprune.discover.runs import RunSummary, summarise
from gpprune.discover.stored import restored
from gpprune.discover.watch.status import RunStatus, run_status
from gpprune.errors import GppruneError
from gpprune.evals import shown
from gpprune.files import expanded
from gpprune.gp import Outcome, RunDirectory, SearchSettings, front
from gpprune.primitives import Formula

_DEPTH = 12  # generations of ancestors
_REASONS = 6


@dataclass(frozen=True)
class Ancestor:
    """A formula of a family tree.

    Attributes:
        outcome: what became of it.
        parents: what it came from.
        repeated: whether it stands elsewhere in the tree with its own parents.
    """

    outcome: Outcome
    parents: tuple[Ancestor, ...]
    repeated: bool = False


@dataclass(frozen=True)
class Rung:
    """Candidates that were judged on as many cases.

    Attributes:
        cases: on how many.
        kept: how many were judged on all.
        dropped: how many lost the race there.
        failed: how many could not be judged any further.
        seconds: that they took, in all.
        agrees: Kendall's tau of the ranks by these cases and by all, see `gpprune.gp.RungRanks`.
    """

    cases: int
    kept: int
    dropped: int
    failed: int
    seconds: float
    agrees: float | None


@dataclass(frozen=True, eq=False)
class Story:
    """A search as a page tells it.

    Attributes:
        summary: its best formula and figures.
        status: how far it is.
        goal: what was searched for.
        settings: how.
        outcomes: every candidate, in the order they were judged.
        report: its report, as far as it has one.
    """

    summary: RunSummary
    status: RunStatus
    goal: Goal
    settings: SearchSettings
    outcomes: tuple[Outcome, ...]
    report: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run, as the summary has it."""
        return self.summary.name

    def formula(self, outcome: Outcome) -> Formula:
        """A candidate's formula."""
        return outcome.parsed(self.goal.language)

    @cached_property
    def front(self) -> list[tuple[int, Outcome]]:
        """See `gpprune.gp.front`."""
        return front(self.outcomes, self.goal.language)

    @cached_property
    def family(self) -> Ancestor | None:
        """The best evolved formula with all that it came from; None before there is one."""
        best, known = self.summary.best, {outcome.key: outcome for outcome in self.outcomes}
        if best is None or (winner := known.get(best.key)) is None:
            return None
        told: set[str] = set()

        def ancestor(outcome: Outcome, depth: int) -> Ancestor:
            repeated = outcome.key in told and bool(outcome.parents)
            parents = [] if repeated or depth == 0 else outcome.parents
            if depth:  # one that is cut off here may have its parents elsewhere
                told.add(outcome.key)
            own = [ancestor(known[key], depth - 1) for key in parents if key in known]
            return Ancestor(outcome, tuple(own), repeated)

        return ancestor(winner, _DEPTH)

    @cached_property
    def rungs(self) -> list[Rung]:
        """Where candidates left the race, the shortest first."""
        found, agrees = [], {rung.cases: rung.kendall_tau for rung in self.summary.rungs}
        for cases in sorted({outcome.cases for outcome in self.outcomes}):
            here = [outcome for outcome in self.outcomes if outcome.cases == cases]
            kept, dropped = sum(o.full for o in here), sum(o.dropped for o in here)
            seconds = sum(outcome.seconds for outcome in here)
            failed = len(here) - kept - dropped
            found.append(Rung(cases, kept, dropped, failed, seconds, agrees.get(cases)))
        return found

    @cached_property
    def reasons(self) -> list[tuple[str, int]]:
        """Why candidates could not be judged, the most frequent first."""
        reasons = Counter(outcome.reason for outcome in self.outcomes if outcome.reason)
        return [(str(reason), count) for reason, count in reasons.most_common(_REASONS)]

    @cached_property
    def clock(self) -> list[tuple[float, float]]:
        """(minutes of judging, least figure by then), a point for each improvement and the end."""
        points: list[tuple[float, float]] = []
        seconds, best = 0.0, float("inf")
        for outcome in self.outcomes:
            seconds += outcome.seconds
            if outcome.full and outcome.fitness < best:
                best = outcome.fitness
                points.append((seconds / 60, self.summary.loss.shown(best)))
        return [*points, (seconds / 60, points[-1][1])] if points else []

    @property
    def verdict(self) -> str | None:
        """How the best evolved formula stands to the best published one, in a sentence."""
        loss = self.summary.loss
        evolved = self._winner
        published = next((row for row in self.rows if not row["name"].startswith("evolved")), None)
        if evolved is None or published is None:
            return None
        own, other = (row.get(f"test_{loss.figure}") for row in (evolved, published))
        return (
            f"On test text its {loss.figure} is {shown(own, 'not finite')}. That of "
            f"{published['name']}, the best published one on validation text, is "
            f"{shown(other, 'not finite')}."
        )

    @property
    def layers(self) -> list[dict[str, Any]]:
        """How much of each layer the best evolved formula takes, where the report says it."""
        return list((self._winner or {}).get("layers", []))

    @property
    def _winner(self) -> dict[str, Any] | None:
        """The report's row of the best evolved formula; it may be newer than the report."""
        best = self.summary.best
        text = None if best is None else best.text
        evolved = (row for row in self.rows if row["name"].startswith("evolved"))
        return next((row for row in evolved if row["formula"] == text), None)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The formulas of the report, best on validation text first, evolved and published."""
        figure = f"validation_{self.summary.loss.figure}"
        rows: list[dict[str, Any]] = list(self.report.get("formulas", []))
        return sorted(rows, key=lambda row: (row.get(figure) is None, row.get(figure) or 0.0))


def likeness(story: Story) -> str:
    """What runs have in common that differ in their seed alone, or in how long they went on."""
    goal = story.goal.stored()
    goal["texts"] = {name: value for name, value in goal["texts"].items() if name != "seed"}
    length = {"seed", "generations", "time_limit", "candidate_time_limit"}
    return repr((sorted(goal.items()), story.settings.model_dump(exclude=length)))


def stories(paths: list[str | Path]) -> list[Story]:
    """Searches, read whole, each once.

    Raises:
        UsageError: a path is no run directory.
        GppruneError: a run or its report is damaged, or is no search of this gpprune.
    """
    found = []
    paths = [*{expanded(path).resolve(): path for path in paths}.values()]
    for path, summary in zip(paths, summarise(paths), strict=True):
        status = run_status(path)
        with RunDirectory.open(status.run) as run:
            goal, settings = restored(run), run.search
            outcomes = tuple(run.outcomes(goal.language))
        found.append(Story(summary, status, goal, settings, outcomes, _report(status.run)))
    return found


def _report(run: Path) -> Mapping[str, Any]:
    file = run / REPORT_FILE
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = found["formulas"]
        if not all(
            isinstance(row["name"], str) and isinstance(row["formula"], str) for row in rows
        ):
            raise TypeError("a formula without a name or a text")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GppruneError(
            f"{file} cannot be read: {error}; make it anew with `gpprune resume {run}`"
        ) from error
    return dict(found)
