"""What a search needs before its first candidate."""

from __future__ import annotations

from gpprune.discover.goals.goal import Goal
from gpprune.discover.workbench import LayerStatistics, Workbench
from gpprune.errors import UsageError
from gpprune.evals import RECIPE
from gpprune.primitives import Formula, parse
from gpprune.progress import Progress, silent
from gpprune.prune import Loaded


def ready(
    goal: Goal,
    loaded: Loaded | None = None,
    progress: Progress = silent,
    *,
    statistics: LayerStatistics | None = None,
) -> Workbench:
    """A workbench with all that can fail for want of a model or text done.

    Args:
        goal: what is searched for.
        loaded: its model, if it is loaded already.
        progress: called as `progress(label, done, total)`.
        statistics: those of the model, where they were measured already.
    """
    if loaded is not None and loaded.name != goal.model:
        raise UsageError(
            f"the loaded model is {loaded.name!r}, and the goal's {goal.model!r}: name one in both"
        )
    texts = goal.texts
    bench = Workbench(
        loaded or goal.model,
        texts,
        dtype=goal.dtype,
        loss=goal.loss,
        reads=[
            *((text, "validation") for text in texts.judged),
            (texts.calibration_text, "calibration"),
        ],
        names=goal.statistics.union(*(start.names for start in starts(goal))),
        statistics=statistics,
        progress=progress,
    )
    bench.check_pattern(goal.pattern)
    if (goal.order or ("sequential" if goal.draft == RECIPE else "dense")) != "dense":
        bench.check_chain()
    for text in texts.judged:
        bench.test_windows(spread=goal.spread, text=text)
    bench.windows("validation", spread=goal.spread)
    bench.statistics(progress)
    return bench


def starts(goal: Goal) -> list[Formula]:
    """What the search starts from, as it keeps formulas.

    Raises:
        FormulaError: something is no formula of the goal, or none that prunes.
    """
    return [goal.canonical(parse(text, goal.language)) for text in goal.starts]
