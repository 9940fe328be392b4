"""A picture of allocations: the sparsity of each decoder block, and of each role in it."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gpprune.discover.plots.style import (
    LINE,
    MARKERS,
    QUIET,
    legend,
    legend_lines,
    look,
    styled_figure,
)
from gpprune.discover.sharing import Sharing
from gpprune.errors import UsageError

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_VISIBLE = 1e-3  # sparsities that differ by less look like one line


class _Layers(NamedTuple):
    """The linear layers of a model: each one's role, decoder block and number of weights."""

    roles: Sequence[str]
    blocks: Sequence[int]
    sizes: Sequence[int]


def sharing_figure(sharing: Sharing, title: str | None = None) -> Figure:
    """The picture of `allocation_figure`, of what `gpprune.share_out` found."""
    return allocation_figure(
        {share.name: sharing.layer_sparsities(share) for share in sharing.shares},
        roles=sharing.roles,
        blocks=sharing.blocks,
        sizes=sharing.sizes,
        target=sharing.sparsity,
        title=title or f"{sharing.model}, {sharing.metric} at {sharing.sparsity:g}",
    )


def allocation_figure(
    allocations: Mapping[str, Sequence[float]],
    *,
    roles: Sequence[str],
    blocks: Sequence[int],
    sizes: Sequence[int],
    target: float,
    title: str,
) -> Figure:
    """Sparsity over depth: a line an allocation, and below it the roles where they differ.

    The upper panel has the mean sparsity of each block weighted by sizes, with the target as a
    dashed line. Each allocation that gives the layers of one block different sparsities has a panel
    below, a line a role.

    Args:
        allocations: by name, the sparsity, 0 to 1, of each linear layer, `[layers]`.
        roles: `[layers]`, each layer's name inside its block.
        blocks: `[layers]`, its decoder block.
        sizes: `[layers]`, its number of weights.
        target: the sparsity of all.
        title: above the picture.

    Raises:
        UsageError: lengths that disagree, or nothing to draw.
    """
    layers = _Layers(roles, blocks, sizes)
    _check(allocations, layers)
    named = list(dict.fromkeys(roles))
    mixed = [name for name, values in allocations.items() if _differ(values, blocks)]
    columns = {4: 2}.get(len(mixed), max(1, min(3, len(mixed))))
    rows = math.ceil(len(mixed) / columns)
    # A legend taller than its panel would push the panels below it away.
    top = max(3.6, LINE * (legend_lines(allocations) + 4))
    row = max(1.75, LINE * (legend_lines(named) + 1))
    with styled_figure(title, top + row * rows + 0.6) as figure:
        grid = figure.add_gridspec(1 + rows, columns, height_ratios=[top] + [row] * rows)
        upper = figure.add_subplot(grid[0, :])
        means = {name: _means(values, layers) for name, values in allocations.items()}
        lines = [_line(upper, place, *item) for place, item in enumerate(means.items())]
        _sparsity_axes(upper, [value for own in means.values() for value in own.values()], target)
        upper.set(xlabel="decoder block", ylabel="mean sparsity (%)")
        legend(upper, [*lines, upper.lines[-1]])

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
                legend(panel, lines)
        return figure


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
        marker=MARKERS[place % len(MARKERS)],
        markersize=4.6 * scale,
        markevery=(place % step, step),
        **look(place),
    )
    return line


def _sparsity_axes(axes: Axes, values: Sequence[float], target: float) -> None:
    """The target's line; whole blocks across; ten points upwards at least, so that flat is flat."""
    from matplotlib.ticker import MaxNLocator

    label = f"target {100 * target:g} %"
    axes.axhline(100 * target, color=QUIET, lw=1, ls=(0, (6, 4)), label=label)
    low, high = 100 * min(target, *values), 100 * max(target, *values)
    middle, reach = (low + high) / 2, max(5.0, 0.54 * (high - low))
    axes.set_ylim(max(-2, middle - reach), min(102, middle + reach))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
