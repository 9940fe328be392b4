"""The pictures of a page, each also a file of its own, and how a picture stands in a page."""

from __future__ import annotations

import io
import math
import re
import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gpprune.discover.plots.allocations import allocation_figure
from gpprune.discover.plots.searches import figure_axis
from gpprune.discover.plots.style import STYLE, legend, look, styled_figure
from gpprune.discover.watch.story import Story, likeness

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_EVEN = 1e-3  # sparsities that differ by less are drawn by no one
_LOSS = 30.0  # times a run's best figure, past which a formula is off the picture of the front
Points = Sequence[tuple[float, float]]


def figures(told: Sequence[Story]) -> dict[str, Figure]:
    """The pictures that searches of one loss have something to show in, by name."""
    found = {}
    if known := [story for story in told if _drawn(story)]:
        found["convergence"] = _convergence(known)
        found["front"] = _front(known)
    if uneven := [story for story in told if _uneven(story)]:
        found["layers"] = _layers(uneven)
    return found


def averaged(told: Sequence[Story]) -> bool:
    """Whether the picture of convergence has a mean: of three searches or more of one likeness."""
    drawn = [story for story in told if _drawn(story)]
    return len(drawn) > 2 and len({likeness(story) for story in drawn}) == 1


def _drawn(story: Story) -> bool:
    return bool(story.clock) and math.isfinite(story.clock[-1][1])


def svg(figure: Figure, name: str) -> str:
    """A figure as an `svg` element whose ids begin with a name, so that several fit a page."""
    from matplotlib import style

    buffer = io.StringIO()
    with style.context(["default", STYLE]):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


def _convergence(told: Sequence[Story]) -> Figure:
    """The best so far, against candidates and against the time that judging took."""
    loss = told[0].summary.loss
    with styled_figure(f"Best validation {loss.figure} so far", 3.8) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        by_count = {s.name: [(float(n), value) for n, value in s.summary.path] for s in told}
        mean = averaged(told)
        lines = _lines(left, by_count, mean)
        _lines(right, {story.name: story.clock for story in told}, mean)
        left.set(xlabel="candidates judged", ylabel=f"validation {loss.figure}")
        right.set(xlabel="minutes of judging")
        values = [value for points in by_count.values() for _, value in points]
        figure_axis(left, values, loss.logarithmic)
        if len(lines) > 1:
            legend(right, lines)
        return figure


def _lines(axes: Axes, searches: Mapping[str, Points], mean: bool) -> list[Line2D]:
    """A step line a search; if so asked also their mean, and where they lie."""
    drawn = []
    for place, (name, points) in enumerate(searches.items()):
        x, y = [point[0] for point in points], [point[1] for point in points]
        (line,) = axes.step(x, y, where="post", label=name, lw=1.6, **look(place))
        drawn.append(line)
    if mean:
        x, means, low, high = _spread([*searches.values()])
        axes.fill_between(x, low, high, step="post", color="#777777", alpha=0.18, lw=0)
        (line,) = axes.step(x, means, where="post", color="#777777", lw=2.6, label="mean")
        drawn.append(line)
    return drawn


def _spread(runs: Sequence[Points]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Where all have a value: places, means, least and greatest."""
    places = [[x for x, _ in run] for run in runs]
    start, end = max(own[0] for own in places), min(own[-1] for own in places)
    inside = sorted({x for own in places for x in own if start <= x <= end} | {start})
    at = [
        [run[bisect_right(own, x) - 1][1] for run, own in zip(runs, places, strict=True)]
        for x in inside
    ]
    return inside, [statistics.mean(v) for v in at], [min(v) for v in at], [max(v) for v in at]


def _front(told: Sequence[Story]) -> Figure:
    """Loss against the length of formulas: all that were judged, and the best of each length."""
    loss = told[0].summary.loss
    with styled_figure(f"Validation {loss.figure} against length", 3.8) as figure:
        axes = figure.add_subplot()
        lines, values = [], []
        for place, story in enumerate(told):
            full = [o for o in story.outcomes if o.full]
            points = [(len(story.formula(o).tree), loss.shown(o.fitness)) for o in full]
            best = loss.shown(story.front[-1][1].fitness)
            worst = _LOSS * best if best > 0 else math.inf
            near = [point for point in points if point[1] <= worst]
            x, y = [point[0] for point in near], [point[1] for point in near]
            axes.scatter(x, y, s=9, lw=0, alpha=0.35, color=look(place)["color"])
            steps = [(size, loss.shown(o.fitness)) for size, o in story.front]
            steps = [step for step in steps if step[1] <= worst]
            steps.append((max(x), steps[-1][1]))
            x, y = [step[0] for step in steps], [step[1] for step in steps]
            (line,) = axes.step(x, y, where="post", label=story.name, lw=1.8, **look(place))
            lines.append(line)
            values += [value for _, value in near if math.isfinite(value)]
        axes.set(xlabel="nodes of the formula", ylabel=f"validation {loss.figure}")
        figure_axis(axes, values, loss.logarithmic)
        if len(lines) > 1:
            legend(axes, lines)
        return figure


def _uneven(story: Story) -> bool:
    shares = [layer["zeros"] / layer["size"] for layer in story.layers]
    return bool(shares) and max(shares) - min(shares) > _EVEN


def _layers(told: Sequence[Story]) -> Figure:
    """Sparsity over depth, of all that have the layers of the first."""
    first = told[0].layers
    places = [(layer["name"], layer["size"]) for layer in first]
    alike = [s for s in told if [(at["name"], at["size"]) for at in s.layers] == places]
    return allocation_figure(
        {s.name: [layer["zeros"] / layer["size"] for layer in s.layers] for s in alike},
        roles=[str(layer["role"]) for layer in first],
        blocks=[int(layer["block"]) for layer in first],
        sizes=[int(layer["size"]) for layer in first],
        target=told[0].goal.sparsity,
        title="Sparsity by layer of the best formula",
    )
