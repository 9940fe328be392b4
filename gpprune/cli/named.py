"""Allocations as the command line names them, and the zeros that they give a model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from gpprune.cli.console import Report
from gpprune.cli.problem import Texts, Workbench, named_formula
from gpprune.errors import GppruneError, UsageError
from gpprune.evals import AllocationFitness
from gpprune.gp import Archive, RunDirectory
from gpprune.primitives import ALLOCATION, ALLOCATIONS, Formula, allocation, parse, unit_of
from gpprune.prune import LEARNED, parse_pattern

_LABEL = re.compile(r"([^=(/]+)=(.+)")


@dataclass(frozen=True)
class Named:
    """An allocation to compare: `formula` is None for a learned one, which `learned` names."""

    name: str
    formula: Formula | None
    unit: str
    learned: str = ""

    @property
    def text(self) -> str:
        """Formula text, or what it is called."""
        return self.formula.text if self.formula is not None else self.learned


def named_allocations(given: Iterable[str] | None, unit: str | None) -> list[Named]:
    """Allocations by what the command line calls them, or `label=` it.

    Raises:
        UsageError: none of the things that a name may be.
    """
    found = []
    for text in given or [*ALLOCATIONS, *LEARNED]:
        label = _LABEL.fullmatch(text)
        what = text if label is None else label[2]
        name = what if label is None else label[1]
        if what in LEARNED:
            found.append(Named(name, None, "layer", what))
        elif os.path.isdir(what):
            best = _best_of(Path(what), unit)
            found.append(best if label is None else replace(best, name=name))
        else:
            found.append(Named(name, allocation(what), unit or unit_of(what) or "layer"))
    return found


def _best_of(path: Path, unit: str | None) -> Named:
    with RunDirectory.open(path) as run:
        own = str(run.problem.get("unit", "layer"))
        if run.problem.get("goal") != "allocation":
            raise UsageError(f"the run {path} searched for no allocation: name one that did")
        evolved = Archive(run.outcomes()).evolved(1)
    if not evolved:
        raise GppruneError(f"the run {path} has no fully judged allocation yet: resume it first")
    return Named(path.name, parse(evolved[0].text, ALLOCATION), unit or own)


class AllocationBench:
    """One ranking of a metric's scores that serves every unit and sparsity."""

    def __init__(self, bench: Workbench, tokens: Tensor, metric: str, pattern: str) -> None:
        """Rank the scores; `tokens` `[windows, length]` are what may be judged on."""
        self.bench = bench
        self.metric = named_formula(metric)
        self.fitness = AllocationFitness(
            bench.loaded.model,
            bench.statistics,
            tokens,
            metric=self.metric,
            sparsity=parse_pattern(pattern).sparsity or 0.5,
            pattern=pattern,
            dtype=bench.dtype,
            progress=bench.report,
        )

    def zeros(self, named: Named, level: float) -> Tensor:
        """How many weights of each layer go, int64 `[layers]`."""
        fitness = self.fitness.under(sparsity=level, unit=named.unit)
        if named.formula is not None:
            return fitness.zeros(named.formula)
        bench = self.bench
        model, tokens = bench.loaded.model, bench.calibration()
        learn = LEARNED.find(named.learned).learn
        learned = learn(model, self.metric, tokens, bench.statistics, level, bench.report)
        return fitness.exact(learned)


def allocation_workbench(
    model: str,
    dtype: str,
    texts: Texts,
    report: Report,
    chosen: list[Named],
    metric: str,
    reads: list[tuple[str, str]],
) -> Workbench:
    """A workbench that measures what a metric and allocations read."""
    names = named_formula(metric).names.union(
        *(named.formula.names for named in chosen if named.formula is not None)
    )
    return Workbench(
        model,
        dtype,
        texts,
        report,
        reads=[*reads, (texts.calibration_text, "calibration")],
        terminals=names,
    )
