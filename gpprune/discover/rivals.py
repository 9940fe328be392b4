"""The published methods beside the evolved formulas in a search's report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.primitives import (
    ALLOCATIONS,
    JOINT,
    METRICS,
    Formula,
    allocation,
    parse,
    seeds,
    unit_costs,
)
from gpprune.prune import parse_pattern


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


def metric_seeds(pattern: str) -> dict[str, Formula]:
    """What a search for metrics starts from: those that it measures all of, or costs of units."""
    if parse_pattern(pattern).units:
        return {name: entry.formula for name, entry in unit_costs().items()}
    return dict(seeds)


def metric_rivals(pattern: str) -> list[Rival]:
    """The published metrics under their own pattern or the search's; costs of units under it."""
    if parse_pattern(pattern).units:
        costs = unit_costs().values()
        return [Rival(e.paper, (Choice(e.name, e.formula, pattern),)) for e in costs]
    return [metric_rival(name, name, formula, pattern) for name, formula in seeds.items()]


def joint_seeds() -> dict[str, Formula]:
    """Every published metric, uniform, and some with an allocation that suits it."""
    found = {name: _joint(formula, "0") for name, formula in seeds.items()}
    for name in ("wanda", "gblm", "pruner-zero"):
        for text in ("atp(0.2)", "snip"):
            found[f"{name} {text}"] = _joint(seeds[name], allocation(text).text)
    return found


def _joint(scores: Formula, shares: str) -> Formula:
    return parse(f"joint({scores.text}, {shares})", JOINT)


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
    """Whether masks under a pattern are as constrained as under a wanted one, such as N:M.

    Half of each row gone is no rival to two of every four gone. Rows, bands of rows and whole
    layers constrain nothing but how many go where: any of them stands beside any other.

    Args:
        pattern: the one in question.
        wanted: the search's.
        shape: `[out, in]` of a layer that the wanted one fits.
    """
    ours, own = parse_pattern(wanted), parse_pattern(pattern)
    if ours.units or own.units:
        return ours == own
    if ours.grain(shape) == 1:
        return True
    try:
        own.check_layer("the layer", shape)
    except UsageError:
        return False
    return own.groups(shape) >= ours.groups(shape) and own.member(shape) >= ours.member(shape)
