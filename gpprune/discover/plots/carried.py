"""A picture of formulas in several settings, against the best published one of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpprune.discover.plots.style import COLOURS, LINE, MARKERS, QUIET, legend, styled_figure
from gpprune.discover.transfer.result import CarryOver, Line
from gpprune.errors import UsageError

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_HIGHEST = 2.0  # times the best published figure; what is worse is drawn at the edge


def transfer_figure(found: CarryOver) -> Figure:
    """Each formula's figure as a multiple of the best published one, a column a setting.

    Raises:
        UsageError: no published formula was judged.
    """
    if all(found.best_published(at) is None for at in range(len(found.settings))):
        raise UsageError("no published formula was judged that the others could be drawn against")
    figure_name = " or ".join(dict.fromkeys(dense.loss.figure for dense in found.dense))
    title = f"{figure_name.capitalize()} against the best published formula of each setting"
    with styled_figure(title, max(4.6, LINE * (len(found.lines) + 6))) as figure:
        axes = figure.add_subplot()
        drawn = []
        for place, line in enumerate(found.carried):
            own = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
            look: dict[str, Any] = {**own, "linestyle": "none", "markersize": 8, "zorder": 3}
            drawn += axes.plot(*_points(found, line), label=line.name, **look)
        for line in found.lines:
            if not line.carried:
                drawn += _quiet(axes, found, line)
        axes.axhline(1, color=QUIET, lw=1)
        axes.set_xticks(range(len(found.names)), found.names, rotation=20, ha="right")
        axes.set_xlim(-0.5, len(found.names) - 0.5)
        axes.set_ylabel(f"{figure_name}, times the best published")
        legend(axes, [*drawn[: len(found.carried)], *drawn[len(found.carried) :][:1]])
        return figure


def _quiet(axes: Axes, found: CarryOver, line: Line) -> list[Line2D]:
    at, share = _points(found, line)
    own: list[Line2D] = axes.plot(
        at, share, ls="none", marker="_", ms=16, color=QUIET, alpha=0.6, label="published"
    )
    return own


def _points(found: CarryOver, line: Line) -> tuple[list[int], list[float]]:
    """Where a formula is drawn; what is far worse is at the upper edge."""
    at, shares = [], []
    for place in range(len(found.settings)):
        gain = found.gain(line, place)
        if gain is not None:
            at.append(place)
            shares.append(min(1 - gain, _HIGHEST))
    return at, shares
