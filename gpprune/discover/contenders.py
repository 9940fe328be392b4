"""What is compared: recipes by the names that a person gives their metrics and allocations."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpprune.discover.report import RECIPE_FILE
from gpprune.discover.stored import GOALS
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import Archive, Outcome, RunDirectory
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    Language,
    allocation,
    metric,
    named,
    published,
    unit_costs,
    unit_of,
)
from gpprune.primitives.transposed import has_counterpart
from gpprune.prune import LEARNED, RECORD_FILE, Recipe, parse_pattern
from gpprune.prune.select.patterns import FREE

_LABEL = re.compile(r"([^=(/]+)=(.+)")


@dataclass(frozen=True)
class Contender:
    """A recipe under the name that it is shown by."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class NamedAllocation:
    """An allocation to compare: `text` is formula text, or the name of a learned one."""

    name: str
    text: str
    unit: str


def named_allocations(
    given: Iterable[str] | None, unit: str | None = None
) -> list[NamedAllocation]:
    """Allocations by what a person calls them, or `label=` it.

    Args:
        given: published names (with parameters, `owl(7,0.05)`), learned ones, DSA graphs, formula
            text, run directories (their best); None for all that are published.
        unit: "layer" or "block", in place of each allocation's own.

    Raises:
        UsageError: none of the things that a name may be.
    """
    found: list[NamedAllocation] = []
    for text in given or [*ALLOCATIONS, *LEARNED]:
        label = _LABEL.fullmatch(text)
        what = text if label is None else label[2]
        named = _named(what, unit)
        taken = any(other.name == named.name and other != named for other in found)
        if taken or label is not None:  # runs may be called alike, but not their whole paths
            named = replace(named, name=what if label is None else label[1])
        found.append(named)
    return found


def _named(what: str, unit: str | None) -> NamedAllocation:
    if what in LEARNED:
        return NamedAllocation(what, what, "layer")
    path = os.path.expanduser(what)
    if os.path.isdir(path):
        return _best_of(Path(path), unit)
    check_no_path(what)
    return NamedAllocation(what, allocation(what).text, unit or unit_of(what) or "layer")


def check_no_path(text: str) -> None:
    """See that what should be a formula is not the name of a run that is not there.

    Raises:
        UsageError: it can only be a path.
    """
    if "/" in text and "(" not in text:
        raise UsageError(f"there is no run directory {text!r}: name one that `evolve` has made")


def _best_of(path: Path, unit: str | None) -> NamedAllocation:
    with RunDirectory.open(path) as run:
        own = str(run.problem.get("unit", "layer"))
        if run.problem.get("goal") != GOALS["allocation"].kind:
            raise UsageError(f"the run {path} searched for no allocation: name one that did")
        (best,) = best_evolved(run, ALLOCATION)
    return NamedAllocation(path.name, best.text, unit or own)


def started(given: Iterable[str] | None, language: Language) -> tuple[str, ...]:
    """Formulas that a search starts from, as text.

    Args:
        given: each a formula, or a run directory: its best evolved one; None: there are none.
        language: of the search.

    Raises:
        UsageError: there is no such run directory.
        GppruneError: a run of another language, or one that has evolved nothing yet.
    """
    return tuple(_started(each, os.path.expanduser(each), language) for each in given or ())


def _started(text: str, path: str, language: Language) -> str:
    if not os.path.isdir(path):
        check_no_path(text)
        return text
    with RunDirectory.open(path) as run:
        return best_evolved(run, language)[0].text


def named_recipe(path: Path) -> tuple[str, Recipe]:
    """A file's recipe, and what it is called: as the file, or its folder where all are alike.

    Raises:
        UsageError: it holds none.
    """
    inside = path.name in (RECIPE_FILE, RECORD_FILE)
    return path.resolve().parent.name if inside else path.stem, Recipe.read(path)


def best_evolved(run: RunDirectory, language: Language, count: int = 1) -> list[Outcome]:
    """The best formulas that a run has evolved, at most so many.

    Raises:
        GppruneError: there is none yet.
    """
    evolved = Archive(run.outcomes(language)).evolved(count)
    if not evolved:
        raise GppruneError(
            f"the run {run.path} has no fully judged {language.name} yet: resume it first"
        )
    return evolved


def pattern_of(name: str, given: str | None) -> str:
    """The pattern asked for, else the one a published metric's own code uses, else rows."""
    if given is not None:
        return parse_pattern(given).text
    known = named(name)
    return "row" if known is None else known.pattern


def pattern_with_room(name: str, given: str | None) -> str:
    """As `pattern_of`, where an allocation is to share out; "layer" for a metric's own "model"."""
    own = pattern_of(name, given)
    return "layer" if given is None and parse_pattern(own).across else own


def levels(text: str | None) -> list[float] | None:
    """`0.5,0.6` as numbers; None for None.

    Raises:
        UsageError: not numbers.
    """
    return None if text is None else [_number(part) for part in text.split(",")]


def _number(part: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise UsageError(
            f"--sparsity {part!r} is not a number: write for example 0.5,0.6"
        ) from None


def metric_contenders(
    metrics: Iterable[str] | str | None,
    sparsity: float | Sequence[float] | None = None,
    pattern: str | None = None,
    **how: Any,
) -> list[Contender]:
    """Metrics at each sparsity.

    Args:
        metrics: published names or formula text; by default all published ones, under a pattern
            of units their costs.
        sparsity: one or more shares; by default 0.5, or what the pattern implies.
        pattern: which weights compete; by default each metric's own.
        **how: `update`, `damp_inputs`, `damp_outputs`, `permute` of a recipe; None: its default.

    Raises:
        UsageError: a name, a share or a pattern that is none.
    """
    given = [metrics] if isinstance(metrics, str) else list(metrics or _published(pattern))
    found = []
    for level in _levels(sparsity, 0.5, pattern):
        for name in given:
            chosen = {**how, "pattern": pattern_of(name, pattern), "sparsity": level}
            found.append(Contender(name, Recipe.make(metric=metric(name).text, **chosen)))
    return found


def _published(pattern: str | None) -> Iterable[str]:
    """What is compared under a pattern where nothing is named."""
    units = () if pattern is None else parse_pattern(pattern).units
    if FREE in units:  # rows cost what the metric's counterpart says
        return [name for name, cost in unit_costs().items() if has_counterpart(cost.formula)]
    return unit_costs() if units else published


def allocation_contenders(
    allocations: Iterable[str] | None,
    metric_name: str = "wanda",
    sparsity: float | Sequence[float] | None = None,
    pattern: str | None = None,
    unit: str | None = None,
    **how: Any,
) -> list[Contender]:
    """Allocations at each sparsity under one metric.

    Args:
        allocations: as for `named_allocations`.
        metric_name: the metric, a published name or formula text.
        sparsity: one or more shares; by default 0.7, or what the pattern implies.
        pattern: which weights compete; by default the metric's own.
        unit: what gets a sparsity of its own; by default each allocation's own.
        **how: `update`, `damp_inputs` and `damp_outputs` of a recipe; None for its default.

    Raises:
        UsageError: a name, a share or a pattern that is none.
    """
    own = pattern_with_room(metric_name, pattern)
    named_all = named_allocations(allocations, unit)
    return [
        Contender(
            named.name,
            Recipe.make(
                metric=metric_name,
                allocation=named.text,
                unit=named.unit,
                sparsity=level,
                pattern=own,
                **how,
            ),
        )
        for level in _levels(sparsity, 0.7, own)
        for named in named_all
    ]


def _levels(
    sparsity: float | Sequence[float] | None, default: float, pattern: str | None
) -> list[float | None]:
    if sparsity is None:
        implied = None if pattern is None else parse_pattern(pattern).sparsity
        return [default if implied is None else None]
    return [sparsity] if isinstance(sparsity, int | float) else list(sparsity)
