"""What a search has found, as a table, and what to do next."""

from __future__ import annotations

import shlex

from gpprune.cli.console import print_shown, say, tell
from gpprune.discover import RECIPE_FILE, Discovery, MetricGoal
from gpprune.discover.report import screening_line
from gpprune.evals import RECIPE


def print_discovery(found: Discovery) -> None:
    """The table of a search, and what to do next."""
    goal = found.goal
    print_shown(found.table)
    if found.screening is not None:
        say(screening_line(found.screening))
    if goal.shots > 1 and goal.draft != RECIPE:
        say(f"searched under one shot; the recipe prunes in {goal.shots}")
    _print_hints(found)


def _print_hints(found: Discovery) -> None:
    if found.run is None:
        return
    hints = [(f"gpprune simplify {shlex.quote(str(found.run))}", "the closed forms")]
    if found.winners:
        recipe = shlex.quote(str(found.run / RECIPE_FILE))
        model = f" --model {shlex.quote(found.goal.model)}"
        model = "" if found.goal.model == MetricGoal.model else model
        hints.append((f"gpprune prune{model} --recipe {recipe} --out DIR", "a checkpoint"))
    width = max(len(command) for command, _ in hints)
    for command, what in hints:
        tell(f"{command:<{width}}  {what}")
