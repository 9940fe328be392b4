"""The published methods beside the evolved formulas in a search's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.primitives import ALLOCATIONS, METRICS, Formula, allocation
from gpprune.prune import Pattern, parse_pattern


@dataclass(frozen=True)
class Choice:
    """A setting to use a published formula in: a pattern or a unit, see `Goal.varied`."""

    name: str
    formula: Formula
    setting: str


@dataclass(frozen=True)
class Rival:
    """A published method.

    A report takes the choice that serves it best on validation text, so that a search does not
    win by its settings alone.
    """

    paper: str
    choices: tuple[Choice, ...]


def metric_rival(name: str, metric: str, formula: Formula, pattern: str) -> Rival:
    """A published metric under its own code's pattern or the search's.

    Args:
        name: what the report calls it.
        metric: its name in `METRICS`.
        formula: what is judged, the metric itself or a joint formula of it.
        pattern: the search's.
    """
    entry = METRICS[metric]
    settings = dict.fromkeys((entry.pattern, pattern))
    return Rival(entry.paper, tuple(Choice(name, formula, setting) for setting in settings))


# ATP's difference between last and first block, tuned on validation text for the report.
_DIFFERENCES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


def allocation_rivals() -> list[Rival]:
    """The published allocations for the unit of their code, and ATP at each difference."""
    rivals = [
        Rival(entry.paper, (Choice(name, entry.formula, entry.unit),))
        for name, entry in ALLOCATIONS.items()
        if name != "atp"
    ]
    names = [f"atp({difference:g})" for difference in _DIFFERENCES]
    tuned = tuple(Choice(name, allocation(name), ALLOCATIONS["atp"].unit) for name in names)
    return [*rivals, Rival(ALLOCATIONS["atp"].paper, tuned)]


def as_strict(pattern: str, wanted: str, shape: Sequence[int]) -> bool:
    """Whether weights compete in groups no larger than a wanted pattern's.

    A mask under a laxer one is no rival: half of each row is gone by far better weights than two
    of every four.

    Args:
        pattern: the one in question.
        wanted: the search's.
        shape: `[out, in]` of a layer that the wanted one fits.
    """
    return _groups(parse_pattern(pattern), shape) >= _groups(parse_pattern(wanted), shape)


def _groups(pattern: Pattern, shape: Sequence[int]) -> int:
    try:
        pattern.check_layer("the layer", shape)
    except UsageError:
        return 0
    return pattern.groups(shape)
