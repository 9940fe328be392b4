"""The goals by name, and how one is kept in a run directory and found again."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpprune.discover.goals.goal import Goal
from gpprune.discover.goals.layered import AllocationGoal, JointGoal
from gpprune.discover.goals.metric import MetricGoal
from gpprune.discover.workbench import Workbench
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RunDirectory
from gpprune.prune.model.sources import source_of

GOALS: Mapping[str, type[Goal]] = {
    goal.kind: goal for goal in (MetricGoal, AllocationGoal, JointGoal)
}

# Beside the goal's own fields in [problem].
_GOAL, _DIGESTS = "goal", "digests"


def problem_of(goal: Goal, bench: Workbench) -> dict[str, Any]:
    """The [problem] of a run directory: the goal, and digests of what it judges on.

    Paths are stored absolute, so that the run goes on from any directory, and the dtype is the one
    that is judged in, so that it does on any machine.
    """
    return {**settled(goal, bench).stored(), _DIGESTS: bench.digests()}


def settled(goal: Goal, bench: Workbench) -> Goal:
    """A goal that means the same from any directory, and in any machine's dtype."""
    return replace(
        goal,
        model=_settled_model(goal.model),
        texts=goal.texts.settled(),
        dtype=str(bench.dtype).removeprefix("torch."),
    )


def _settled_model(spec: str) -> str:
    """A specification that means the same from any directory: a directory's absolute path."""
    of_directory = source_of(spec).name == "directory"
    return os.path.abspath(os.path.expanduser(spec)) if of_directory else spec


def restored(run: RunDirectory) -> Goal:
    """The goal of a run directory.

    Raises:
        GppruneError: the stored values are not those of a search that this gpprune knows.
    """
    stored = run.problem
    kind = stored.get(_GOAL)
    if kind not in GOALS:
        raise GppruneError(
            f"the run {run.path} is not a search that can go on: problem.goal in its settings.toml "
            f"is {kind!r}, not one of {', '.join(GOALS)}"
        )
    values = {name: value for name, value in stored.items() if name not in (_GOAL, _DIGESTS)}
    try:
        return TypeAdapter(GOALS[str(kind)]).validate_python(values, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise GppruneError(
            f"the run {run.path} is not a {kind} search that can go on: problem.{place} in its "
            f"settings.toml: {first['msg'].lower()}"
        ) from error


def moved(
    goal: Goal, model: str | None, texts: Sequence[str], calibration_text: str | None
) -> Goal:
    """A goal whose model and texts lie elsewhere now; None, and no text, for what has not moved.

    Raises:
        UsageError: there are fewer or more texts than the goal's.
    """
    known = goal.texts.judged
    if texts and len(texts) != len(known):
        raise UsageError(
            f"the run judges on {len(known)} texts ({', '.join(known)}), and {len(texts)} were "
            "given: say in their order where each lies now"
        )
    text, *more = texts or known
    now = replace(
        goal.texts,
        text=text,
        more_texts=tuple(more),
        calibration_text=calibration_text or goal.texts.calibration_text,
    )
    return replace(goal, model=model or goal.model, texts=now)


def check_digests(run: RunDirectory, bench: Workbench) -> None:
    """See that a run goes on with the model and texts that it began with.

    A run that was made before digests were kept has none, and is not checked.

    Raises:
        UsageError: naming what has changed; losses of the two could not be ranked together.
    """
    known = run.problem.get(_DIGESTS)
    if not isinstance(known, dict):
        return
    found = bench.digests()
    changed = sorted(what for what, digest in known.items() if found.get(what, digest) != digest)
    if changed:
        raise UsageError(
            f"the run {run.path} began with another {' and another '.join(changed)}: put back what "
            "it judged its candidates on, or begin a new run"
        )
