"""A picture of searches: the best so far against the candidates judged."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpprune.discover.plots.style import (
    LINE,
    QUIET,
    legend,
    legend_lines,
    look,
    styled_figure,
)
from gpprune.discover.runs import RunSummary
from gpprune.errors import UsageError
from gpprune.evals import NEXT_TOKEN, Loss

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Points = Sequence[tuple[int, float]]


def summary_figure(summaries: Iterable[RunSummary]) -> Figure:
    """The picture of `search_figure`, of what `gpprune.summarise` found.

    Raises:
        UsageError: none of the runs has a fully judged formula yet, or they were judged by
            different losses.
    """
    drawn = [summary for summary in summaries if summary.path]
    if not drawn:
        raise UsageError("none of the runs has a fully judged formula to draw yet")
    losses = {summary.loss.name: summary.loss for summary in drawn}
    if len(losses) > 1:
        raise UsageError(f"the runs were judged by {', '.join(losses)}: draw those of one loss")
    groups = {summary.name: summary.strategy for summary in drawn}
    (loss,) = losses.values()
    return search_figure(
        {summary.name: summary.path for summary in drawn},
        title=f"Best validation {loss.figure} so far",
        groups=groups if len(set(groups.values())) > 1 else None,
        loss=loss,
    )


def search_figure(
    searches: Mapping[str, Points],
    *,
    title: str,
    groups: Mapping[str, str] | None = None,
    loss: Loss = NEXT_TOKEN,
) -> Figure:
    """The best figure so far against the candidates judged, a step line a search.

    Args:
        searches: by name, pairs (candidates judged, best validation figure so far) whose first
            members do not decrease; a figure that is not finite is left out.
        title: above the picture.
        groups: each name's group: then a group has one colour, a thin line each search, and a
            thick one for the median, over the candidates for which every search of the group has a
            value.
        loss: what was measured, whose figure is drawn.

    Raises:
        UsageError: counts that decrease, a search without a group, or nothing finite to draw.
    """
    known = _finite_points(searches, groups)
    with styled_figure(title, max(4.6, LINE * (legend_lines(searches) + 4))) as figure:
        axes = figure.add_subplot()
        if groups is None:
            lines = [
                _steps(axes, place, points, label=name, lw=1.6)
                for place, (name, points) in enumerate(known.items())
            ]
        else:
            lines = _group_lines(axes, known, groups)
        axes.set(xlabel="candidates judged", ylabel=f"best validation {loss.figure}")
        values = [value for points in known.values() for _, value in points]
        figure_axis(axes, values, loss.logarithmic)
        legend(axes, lines)
        return figure


def _finite_points(
    searches: Mapping[str, Points], groups: Mapping[str, str] | None
) -> dict[str, Points]:
    for name, points in searches.items():
        counts = [count for count, _ in points]
        if counts != sorted(counts):
            raise UsageError(f"search {name!r}: its counts of candidates decrease; sort them")
        if groups is not None and name not in groups:
            raise UsageError(f"search {name!r} has no group: give each search one")
    known: dict[str, Points] = {
        name: [point for point in points if math.isfinite(point[1])]
        for name, points in searches.items()
    }
    if not any(known.values()):
        raise UsageError("no finite figure to draw: give a search that judged a candidate")
    return known


def _steps(axes: Axes, place: int, points: Points, **how: Any) -> Line2D:
    counts, values = [count for count, _ in points], [value for _, value in points]
    (line,) = axes.step(counts, values, where="post", **look(place), **how)
    return line


def _group_lines(
    axes: Axes, searches: Mapping[str, Points], groups: Mapping[str, str]
) -> list[Line2D]:
    """A thin line each search and a thick median each group; what the legend shows of them."""
    members: dict[str, list[Points]] = defaultdict(list)
    for name, points in searches.items():
        members[groups[name]].append(points)
    lines = []
    for place, (group, runs) in enumerate(members.items()):
        for points in runs:
            _steps(axes, place, points, lw=0.9, alpha=0.5)
        label = f"{group}, median of {len(runs)}"
        lines.append(_steps(axes, place, _median(runs), label=label, lw=2.6, zorder=3))
    (thin,) = axes.plot([], [], color=QUIET, lw=0.9, label="one search")
    return [*lines, thin]


def _median(runs: Sequence[Points]) -> Points:
    """The median of step lines, where every one of them has a value."""
    if not all(runs):
        return []
    counts = [[count for count, _ in run] for run in runs]
    start, end = max(own[0] for own in counts), min(own[-1] for own in counts)

    def at(count: int) -> float:
        steps = zip(runs, counts, strict=True)
        return statistics.median(run[bisect_right(own, count) - 1][1] for run, own in steps)

    inside = {count for own in counts for count in own if start <= count <= end}
    return [(count, at(count)) for count in sorted(inside)]


def figure_axis(axes: Axes, values: Sequence[float], logarithmic: bool) -> None:
    """An axis whose ticks are plain round numbers, also within one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    narrow = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    axes.margins(y=0.06)
    axes.yaxis.set_major_locator(narrow)
    if logarithmic:
        ratio = max(values) / min(values)
        wide = LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,))
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(narrow if ratio < 4 else wide)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
