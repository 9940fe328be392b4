"""Pictures of allocations and of searches, each written as a PNG and an SVG."""

from __future__ import annotations

import io
import math
import os
import statistics
import textwrap
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpprune.errors import GppruneError, UsageError

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Points = Sequence[tuple[int, float]]

# The palette of Okabe and Ito (2008) for all kinds of colour vision, less its yellow, which is
# too light for a line on white.
_COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000"]
_DASHES: list[Any] = ["-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
_MARKERS = "osD^vPX<>p*h"
_QUIET = "#777777"
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gpprune",  # the same ids each time
}
_WIDTH = 9.0  # inches
_DPI = 200
_LINE = 0.19  # inches that a line of a legend takes
_ACROSS = 30  # characters that one holds
_VISIBLE = 1e-3  # sparsities that differ by less look like one line


class _Layers(NamedTuple):
    """The linear layers of a model: each one's role, decoder block and number of weights."""

    roles: Sequence[str]
    blocks: Sequence[int]
    sizes: Sequence[int]


def plot_allocations(
    allocations: Mapping[str, Sequence[float]],
    roles: Sequence[str],
    blocks: Sequence[int],
    sizes: Sequence[int],
    target: float,
    path: Path,
    title: str,
) -> list[Path]:
    """Sparsity over depth: a line an allocation, and below it the roles where they differ.

    `allocations` maps a name to the sparsity, 0 to 1, of each linear layer `[layers]`; `roles`
    `[layers]` name each layer inside its block, `blocks` `[layers]` its decoder block and `sizes`
    `[layers]` its number of weights. The upper panel has the mean sparsity of each block weighted
    by `sizes`, with `target` as a dashed line. Each allocation that gives the layers of one block
    different sparsities has a panel below, a line a role.

    Writes `path` with the suffixes `.png` and `.svg`, each whole, and returns both. Raises
    `UsageError` for lengths that disagree and `GppruneError` for a path that cannot be written.
    """
    layers = _Layers(roles, blocks, sizes)
    _check(allocations, layers)
    named = list(dict.fromkeys(roles))
    mixed = [name for name, values in allocations.items() if _differ(values, blocks)]
    columns = {4: 2}.get(len(mixed), max(1, min(3, len(mixed))))
    rows = math.ceil(len(mixed) / columns)
    # A legend taller than its panel would push the panels below it away.
    top = max(3.6, _LINE * (_count(allocations) + 4))
    row = max(1.75, _LINE * (_count(named) + 1))
    with _figure(title, top + row * rows + 0.6) as figure:
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[top] + [row] * rows)
        upper = figure.add_subplot(grid[0, :])
        means = {name: _means(values, layers) for name, values in allocations.items()}
        lines = [_line(upper, place, *item) for place, item in enumerate(means.items())]
        _sparsity_axes(upper, [value for own in means.values() for value in own.values()], target)
        upper.set(xlabel="decoder block", ylabel="mean sparsity (%)")
        _legend(upper, [*lines, upper.lines[-1]])

        spread = [value for name in mixed for value in allocations[name]]
        for place, name in enumerate(mixed):
            panel = figure.add_subplot(grid[1 + place // columns, place % columns])
            lines = [
                _line(panel, turn, role, _means(allocations[name], layers, role), scale=0.68)
                for turn, role in enumerate(named)
            ]
            _sparsity_axes(panel, spread, target)
            panel.set_title(textwrap.fill(name, 84 // columns))
            if place % columns == 0:
                panel.set_ylabel("sparsity (%)")
            if place + columns >= len(mixed):
                panel.set_xlabel("decoder block")
            if place == columns - 1:
                _legend(panel, lines)
        return _save(figure, path)


def plot_search(
    searches: Mapping[str, Points],
    path: Path,
    title: str,
    groups: Mapping[str, str] | None = None,
) -> list[Path]:
    """The best perplexity so far against the candidates judged, a step line a search.

    `searches` maps a name to pairs (candidates judged, best validation perplexity so far) whose
    first members do not decrease; a perplexity that is not finite is left out. `groups` maps each
    name to its group: then a group has one colour, a thin line each search, and a thick one for
    the median, over the candidates for which every search of the group has a value.

    Writes and raises as `plot_allocations`.
    """
    known = _finite_points(searches, groups)
    with _figure(title, max(4.6, _LINE * (_count(searches) + 4))) as figure:
        axes = figure.add_subplot()
        if groups is None:
            lines = [
                _steps(axes, place, points, label=name, lw=1.6)
                for place, (name, points) in enumerate(known.items())
            ]
        else:
            lines = _group_lines(axes, known, groups)
        axes.set(xlabel="candidates judged", ylabel="best validation perplexity")
        _perplexity_axis(axes, [value for points in known.values() for _, value in points])
        _legend(axes, lines)
        return _save(figure, path)


def _check(allocations: Mapping[str, Sequence[float]], layers: _Layers) -> None:
    count = len(layers.roles)
    if not allocations or not count:
        raise UsageError("no allocation or no layer to draw: give at least one of each")
    given = {"blocks": len(layers.blocks), "sizes": len(layers.sizes)}
    given |= {f"allocation {name!r}": len(values) for name, values in allocations.items()}
    for what, length in given.items():
        if length != count:
            raise UsageError(f"{what}: {length} values for {count} layers; give one for each layer")


def _differ(values: Sequence[float], blocks: Sequence[int]) -> bool:
    """Whether some block holds layers of visibly different sparsity."""
    inside: dict[int, list[float]] = defaultdict(list)
    for value, block in zip(values, blocks, strict=True):
        inside[block].append(value)
    return any(max(block) - min(block) > _VISIBLE for block in inside.values())


def _means(values: Sequence[float], layers: _Layers, role: str | None = None) -> dict[int, float]:
    """The mean sparsity of each block, of one role or all, weighted by the layers' sizes."""
    zeros: dict[int, float] = defaultdict(float)
    weights: dict[int, int] = defaultdict(int)
    for value, own, block, size in zip(values, *layers, strict=True):
        if role in (None, own):
            zeros[block] += value * size
            weights[block] += size
    return {block: zeros[block] / weights[block] for block in sorted(zeros)}


def _line(
    axes: Axes, place: int, name: str, means: Mapping[int, float], *, scale: float = 1.0
) -> Line2D:
    """Sparsity in percent over the blocks, in the look of the place."""
    # Markers stand at different blocks, so that of lines that coincide each one is seen.
    step = max(1, min(7, len(means) // 4))
    (line,) = axes.plot(
        list(means),
        [100 * mean for mean in means.values()],
        label=name,
        linewidth=1.6 * scale,
        marker=_MARKERS[place % len(_MARKERS)],
        markersize=4.6 * scale,
        markevery=(place % step, step),
        **_look(place),
    )
    return line


def _look(place: int) -> dict[str, Any]:
    dashes = _DASHES[place // len(_COLOURS) % len(_DASHES)]
    return {"color": _COLOURS[place % len(_COLOURS)], "linestyle": dashes}


def _sparsity_axes(axes: Axes, values: Sequence[float], target: float) -> None:
    """The target's line; whole blocks across; ten points upwards at least, so that flat is flat."""
    from matplotlib.ticker import MaxNLocator

    label = f"target {100 * target:g} %"
    axes.axhline(100 * target, color=_QUIET, lw=1, ls=(0, (6, 4)), label=label)
    low, high = 100 * min(target, *values), 100 * max(target, *values)
    middle, reach = (low + high) / 2, max(5.0, 0.54 * (high - low))
    axes.set_ylim(max(-2, middle - reach), min(102, middle + reach))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


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
        raise UsageError("no finite perplexity to draw: give a search that judged a candidate")
    return known


def _steps(axes: Axes, place: int, points: Points, **how: Any) -> Line2D:
    counts, values = [count for count, _ in points], [value for _, value in points]
    (line,) = axes.step(counts, values, where="post", **_look(place), **how)
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
    (thin,) = axes.plot([], [], color=_QUIET, lw=0.9, label="one search")
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


def _perplexity_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are plain round numbers, also within one decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ratio = max(values) / min(values)
    narrow = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
    wide = LogLocator(subs=(1, 2, 5) if ratio < 1000 else (1,))
    axes.set_yscale("log")
    axes.margins(y=0.06)
    axes.yaxis.set_major_locator(narrow if ratio < 4 else wide)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _count(names: Iterable[str]) -> int:
    """How many lines a legend of these names has."""
    return sum(max(1, len(textwrap.wrap(name, _ACROSS))) for name in names)


def _legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    """A legend outside the axes at the right, in the order of the lines."""
    names = [textwrap.fill(str(line.get_label()), _ACROSS) for line in lines]
    axes.legend(lines, names, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


@contextmanager
def _figure(title: str, height: float) -> Iterator[Figure]:
    """A figure of one look, whatever the user's own settings of matplotlib are."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.suptitle(textwrap.fill(title, 90), x=0.01, ha="left", fontsize=11)
        yield figure


def _save(figure: Figure, path: Path) -> list[Path]:
    """Both pictures, each written whole or not at all."""
    if not path.name:
        raise UsageError(f"{str(path)!r} names no file: give a path such as plots/allocations")
    drawn = {suffix: io.BytesIO() for suffix in (".png", ".svg")}
    for suffix, buffer in drawn.items():
        metadata = {"Date": None} if suffix == ".svg" else {}
        figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=metadata)
    files = {path.with_suffix(suffix): buffer.getvalue() for suffix, buffer in drawn.items()}
    for file, content in files.items():
        _write(file, content)
    return list(files)


def _write(file: Path, content: bytes) -> None:
    draft = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_bytes(content)
            os.replace(draft, file)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise GppruneError(f"cannot write the picture {str(file)!r}: {why}") from error
