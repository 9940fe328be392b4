"""How far a search is, from its run directory alone, while it runs or afterwards."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpprune.compile import render
from gpprune.discover.report import is_reported
from gpprune.discover.runs import language_of, loss_of
from gpprune.discover.stored import restored
from gpprune.errors import GppruneError
from gpprune.evals import Loss, shown
from gpprune.files import expanded
from gpprune.gp import Archive, Outcome, RunDirectory
from gpprune.primitives import Formula

_RECENT = 40  # candidates that a pace is taken of


@dataclass(frozen=True)
class RunStatus:
    """How far a search is.

    Attributes:
        run: its directory.
        state: "running" while a process searches; "stopped": it can go on; "finished": all its
            generations are done.
        goal: what is searched for.
        model: on which model.
        loss: what is measured.
        generation: that is being judged, from 0.
        generations: that follow number 0, as the search began; more were done where it was resumed
            for more.
        judged: candidates so far, those that failed or were dropped included.
        left: candidates that are still to be judged; None where the run was gone on with past its
            end, which only who does that knows.
        archive_hits: draws that needed no judging, by the last complete generation.
        dropped: candidates that lost the race.
        failed: candidates that could not be judged.
        hourly: candidates an hour of judging, by the time that the last ones took, whoever else was
            judged beside them; None before there is one.
        best: the best formula of all, a published one perhaps.
        origin: where that came from.
        figure: its figure on validation text.
        reported: whether the best evolved formula has been judged on test text.
    """

    run: Path
    state: Literal["running", "stopped", "finished"]
    goal: str
    model: str
    loss: Loss
    generation: int
    generations: int
    judged: int
    left: int | None
    archive_hits: int
    dropped: int
    failed: int
    hourly: float | None
    best: Formula | None
    origin: str | None
    figure: float | None
    reported: bool

    @property
    def seconds_left(self) -> float | None:
        """What judging the candidates that are left takes at the pace of the last ones."""
        if self.hourly is None or self.left is None or self.state == "finished":
            return None
        return 3600 * self.left / self.hourly

    @property
    def closed_form(self) -> str | None:
        """The best formula on one line."""
        return None if self.best is None else render(self.best.canonical(None), "line")

    @property
    def sentences(self) -> list[str]:
        """How far it is, for a reader."""
        left = self.seconds_left
        pace = "" if self.hourly is None else f", {self.hourly:.0f} an hour of judging"
        found = [
            f"{self.run}  {self.state}: {self.goal} on {self.model}",
            f"generation {self.generation} of {self.generations}, {self.judged} formulas judged"
            f"{pace}; {self.dropped} dropped, {self.failed} failed, {self.archive_hits} archive "
            "hits",
        ]
        if self.figure is None:
            found.append("no formula has been judged in full yet")
        else:
            best = f"best {self.loss.figure} {shown(self.figure)} ({self.origin})"
            found.append(f"{best}  {self.closed_form}")
        if left is not None:
            found.append(f"{self.left} more take about {minutes(left)} of judging")
        if self.state == "stopped":
            found.append(f"go on with `gpprune resume {shlex.quote(str(self.run))}`")
        elif self.state == "finished" and not self.reported:
            found.append("its winners have not been judged on test text: resume it for that")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "run": str(self.run),
            "state": self.state,
            "goal": self.goal,
            "model": self.model,
            "loss": self.loss.name,
            "generation": self.generation,
            "generations": self.generations,
            "judged": self.judged,
            "left": self.left,
            "archive_hits": self.archive_hits,
            "dropped": self.dropped,
            "failed": self.failed,
            "candidates_an_hour": self.hourly,
            "seconds_left": self.seconds_left,
            "formula": None if self.best is None else self.best.text,
            "origin": self.origin,
            self.loss.figure: self.figure,
            "closed_form": self.closed_form,
            "reported": self.reported,
        }


def minutes(seconds: float) -> str:
    """A time for a reader."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_status(path: str | Path) -> RunStatus:
    """How far a search is; nothing is changed, and a search that runs is not disturbed.

    Raises:
        UsageError: the path is no run directory.
        GppruneError: the run is damaged.
    """
    with RunDirectory.open(expanded(path)) as run:
        busy, loss, language = run.busy, loss_of(run), language_of(run)
        state, outcomes, settings = run.state(), run.outcomes(language), run.search
        given = 0
        with suppress(GppruneError):  # a search of another fitness has no goal
            goal = restored(run)
            given = len(goal.seeds()) + len(goal.starts)
    archive = Archive(outcomes)
    here = sum(outcome.generation == state.generation for outcome in outcomes)
    # past its end it was gone on with, to a generation that its settings do not say
    extended = state.generation > settings.generations and (here > 0 or busy)
    done = state.generation > settings.generations and not extended
    size = settings.offspring if state.generation else max(settings.population, given)
    later = settings.offspring * (settings.generations - state.generation)
    left = 0 if done else None if extended else max(0, size - here) + later
    best, evolved = archive.champion, next(iter(archive.evolved(1)), None)
    told = None if evolved is None else evolved.text
    return RunStatus(
        run=run.path,
        state="running" if busy else "finished" if done else "stopped",
        goal=str(run.problem.get("goal")),
        model=str(run.problem.get("model")),
        loss=loss,
        generation=state.generation - done,
        generations=settings.generations,
        judged=len(outcomes),
        left=left,
        archive_hits=state.archive_hits,
        dropped=archive.dropped,
        failed=archive.failed,
        hourly=_hourly(outcomes[-_RECENT:]),
        best=None if best is None else best.parsed(language),
        origin=None if best is None else best.origin,
        figure=None if best is None else loss.shown(best.fitness),
        reported=is_reported(run.path, told),
    )


def _hourly(outcomes: list[Outcome]) -> float | None:
    seconds = sum(outcome.seconds for outcome in outcomes)
    return 3600 * len(outcomes) / seconds if seconds > 0 else None
