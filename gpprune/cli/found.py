"""What a search has found, as a table, and what to do next."""

from __future__ import annotations

import shlex

from gpprune.cli.console import print_table, say, tell
from gpprune.discover import RECIPE_FILE, Discovery, MetricGoal
from gpprune.discover.report import screening_line
from gpprune.evals import RECIPE, shown


def print_discovery(found: Discovery) -> None:
    """The table of a search, and what to do next."""
    goal = found.goal
    updated = ["update"] if goal.update != "none" else []
    whole = goal.update if goal.order is None else f"{goal.update}, {goal.order}"
    columns = [goal.kind, "from", goal.varied, *updated, "validation", "test", "closed form"]
    rows = [
        [
            finding.name,
            finding.origin.removeprefix("published, "),
            finding.setting,
            *([update] if updated else []),
            shown(judged.validation.figure),
            shown(judged.test.figure),
            finding.closed_form,
        ]
        for finding in found.findings
        for update, judged in [("masks alone", finding.masks_alone), (whole, finding.judged)]
        if judged is not None
    ]
    result = found.result
    title = (
        f"{goal.model} at sparsity {goal.sparsity:g}: {found.loss.figure} "
        f"({result.evaluated} formulas judged, {result.archive_hits} archive hits)"
    )
    print_table(columns, rows, title=title, numbers=["validation", "test"])
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
