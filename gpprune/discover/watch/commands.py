"""The commands that make a search again and that use what it found."""

from __future__ import annotations

import shlex
from pathlib import Path

from gpprune.discover.goals.goal import Goal
from gpprune.discover.goals.layered import AllocationGoal, JointGoal
from gpprune.discover.report import RECIPE_FILE
from gpprune.gp import PRESETS, SearchSettings


def evolve_command(goal: Goal, settings: SearchSettings, out: str = "DIR") -> str | None:
    """The command of a search; None where its settings are none that the command line makes.

    Args:
        goal: what was searched for.
        settings: how.
        out: the directory that it is to make.
    """
    if goal.texts.seed != settings.seed:  # --seed is both
        return None
    own = settings.model_dump()
    size = ("population", "offspring", "generations")
    flags = (*size, "overlap", "strategy", "select", "time_limit", "seed")
    changed = {name: own[name] for name in flags}
    presets = [name for name, known in PRESETS.items() if known.replaced(**changed) == settings]
    if not presets:
        return None
    preset = goal.preset if goal.preset in presets else presets[0]
    texts = goal.texts
    given: list[tuple[str, object]] = [("model", goal.model)]
    given += [("text", text) for text in texts.judged]
    given += [
        ("calibration-text", texts.calibration_text),
        ("windows", texts.windows),
        ("window-length", texts.window_length),
        ("calibration-samples", texts.calibration_samples),
        ("sparsity", goal.sparsity),
        ("pattern", goal.pattern),
    ]
    if isinstance(goal, AllocationGoal):
        given.append(("metric", goal.metric))
    if isinstance(goal, AllocationGoal | JointGoal):
        given.append(("unit", goal.unit))
    if goal.update != "none":
        given += [("damp-inputs", goal.damp_inputs), ("damp-outputs", goal.damp_outputs)]
    given += [
        ("update", goal.update),
        ("draft", goal.draft),
        ("order", goal.order),
        *(("start", start) for start in goal.starts),
        ("shots", goal.shots),
        ("schedule", goal.schedule),
        ("loss", goal.loss),
    ]
    if goal.loss.startswith("task:"):
        given += [("task-data", texts.task_data), ("per-task-docs", texts.documents)]
    given += [
        ("dtype", goal.dtype),
        ("preset", preset),
        ("population", settings.population),
        ("offspring", settings.offspring),
        ("generations", settings.generations),
        ("overlap", settings.overlap or None),
        ("strategy", settings.strategy),
        ("select", None if settings.select == "fitness" else settings.select),
        ("time-limit", None if settings.time_limit is None else f"{settings.time_limit}s"),
        ("seed", settings.seed),
        ("out", out),
    ]
    parts = [f"--{name} {shlex.quote(str(value))}" for name, value in given if value is not None]
    return " ".join([f"gpprune evolve {goal.kind}", *parts])


def use_commands(run: Path, model: str, found: bool) -> list[tuple[str, str]]:
    """What one may do with a run: pairs of a command and what it does.

    Args:
        run: its directory.
        model: that it searched on.
        found: whether it has a recipe.
    """
    own = shlex.quote(str(run))
    commands = [(f"gpprune simplify {own}", "its best formulas as closed forms")]
    if found:
        recipe = shlex.quote(str(run / RECIPE_FILE))
        how = f"--model {shlex.quote(model)} --recipe {recipe} --out pruned"
        commands += [
            (f"gpprune prune {how}", "a checkpoint, pruned by the best"),
            ("gpprune eval --model pruned", "the perplexity of that checkpoint"),
        ]
    return [*commands, (f"gpprune resume {own}", "go on with the search, or make its report anew")]
