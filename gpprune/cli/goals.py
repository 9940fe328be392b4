"""What can be searched for: a metric, an allocation, or both as one formula.

Each goal is everything that a search of it is about, stored in the run directory to resume from,
and says what the search starts from, how a formula is judged, and what recipe comes of it. A new
goal is a new class in `GOALS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from gpprune.cli.problem import Texts, Workbench, named_formula
from gpprune.errors import GppruneError
from gpprune.evals import AllocationFitness, JointFitness, MetricFitness
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    JOINT,
    METRIC,
    METRICS,
    Formula,
    FormulaError,
    Language,
    allocation,
    parse,
    seeds,
)
from gpprune.prune import Recipe, parse_pattern

Judge = MetricFitness | AllocationFitness | JointFitness


@dataclass(frozen=True)
class Choice:
    """A way to use a published formula: `way` is a pattern or a unit, see `Goal.way`."""

    name: str
    formula: Formula
    way: str


@dataclass(frozen=True)
class Rival:
    """A published method beside the evolved formulas in a search's report.

    The report takes the choice that serves it best on validation text, so that a search does not
    win by its settings alone.
    """

    paper: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Goal(ABC):
    """What is searched for, on which model and text."""

    texts: Texts
    model: str = "smollm2"
    sparsity: float = 0.5
    pattern: str = "row"
    dtype: str = "float32"

    kind: ClassVar[str]
    language: ClassVar[Language]
    way: ClassVar[str]  # the field that a rival may differ in
    spread: ClassVar[bool] = False  # whether windows are from all over the text, or the first

    def stored(self) -> dict[str, Any]:
        """Plain values for `settings.toml`."""
        return {**asdict(self), "goal": self.kind}

    def canonical(self, formula: Formula, way: str | None = None) -> Formula:
        """The form that a search keeps of a formula; `way` in place of the goal's own."""
        pattern = way if way is not None and self.way == "pattern" else self.pattern
        return formula.canonical(parse_pattern(pattern).group)

    @abstractmethod
    def seeds(self) -> Mapping[str, Formula]:
        """What the search starts from, by name."""

    @abstractmethod
    def fitness(self, bench: Workbench, way: str | None = None) -> Judge:
        """Judges formulas on validation text; `way` in place of the goal's own."""

    def variant(self, fitness: Judge, bench: Workbench, way: str) -> Judge:
        """Judges formulas in another way than the goal's own."""
        return self.fitness(bench, way)

    @abstractmethod
    def rivals(self) -> list[Rival]:
        """The published formulas of the report."""

    @abstractmethod
    def recipe(self, formula: Formula) -> Recipe:
        """How to prune by an evolved formula."""

    @property
    def terminals(self) -> frozenset[str]:
        """The statistics that the search reads."""
        return frozenset("XYG")

    @property
    def own_way(self) -> str:
        """The goal's own setting of what a rival may differ in."""
        return str(getattr(self, self.way))


@dataclass(frozen=True)
class MetricGoal(Goal):
    """A metric, under uniform sparsity."""

    kind = "metric"
    language = METRIC
    way = "pattern"

    def seeds(self) -> Mapping[str, Formula]:
        """The published metrics."""
        return seeds

    def fitness(self, bench: Workbench, way: str | None = None) -> MetricFitness:
        """Judges metrics under a pattern."""
        return bench.fitness(bench.windows("validation"), self.sparsity, way or self.pattern)

    def rivals(self) -> list[Rival]:
        """The published metrics, under their own pattern or the search's."""
        return [_metric_rival(name, name, formula, self.pattern) for name, formula in seeds.items()]

    def recipe(self, formula: Formula) -> Recipe:
        """The metric, uniform."""
        return Recipe(metric=formula.text, sparsity=self.sparsity, pattern=self.pattern)


# ATP's difference between last and first block, tuned on validation text for the report.
_DIFFERENCES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


@dataclass(frozen=True)
class AllocationGoal(Goal):
    """An allocation, under a fixed metric."""

    metric: str = "wanda"
    unit: str = "layer"

    kind = "allocation"
    language = ALLOCATION
    way = "unit"
    spread = True

    @property
    def terminals(self) -> frozenset[str]:
        """Those of any allocation and of the metric."""
        return super().terminals | named_formula(self.metric).names

    def seeds(self) -> Mapping[str, Formula]:
        """The published allocations."""
        return {name: entry.formula for name, entry in ALLOCATIONS.items()}

    def fitness(self, bench: Workbench, way: str | None = None) -> AllocationFitness:
        """Judges allocations for a unit."""
        return AllocationFitness(
            bench.loaded.model,
            bench.statistics,
            bench.windows("validation", spread=self.spread),
            metric=named_formula(self.metric),
            sparsity=self.sparsity,
            pattern=self.pattern,
            unit=way or self.unit,
            dtype=bench.dtype,
            progress=bench.report,
        )

    def variant(self, fitness: Judge, bench: Workbench, way: str) -> Judge:
        """The same ranks for another unit."""
        if isinstance(fitness, AllocationFitness):
            return fitness.under(unit=way)
        return super().variant(fitness, bench, way)

    def rivals(self) -> list[Rival]:
        """The published allocations for the unit of their code, and ATP at each difference."""
        rivals = [
            Rival(entry.paper, (Choice(name, entry.formula, entry.unit),))
            for name, entry in ALLOCATIONS.items()
            if name != "atp"
        ]
        names = [f"atp({difference:g})" for difference in _DIFFERENCES]
        tuned = tuple(Choice(name, allocation(name), ALLOCATIONS["atp"].unit) for name in names)
        return [*rivals, Rival(ALLOCATIONS["atp"].paper, tuned)]

    def recipe(self, formula: Formula) -> Recipe:
        """The metric with the allocation."""
        return Recipe(
            metric=self.metric,
            allocation=formula.text,
            unit=self.unit,
            sparsity=self.sparsity,
            pattern=self.pattern,
        )


@dataclass(frozen=True)
class JointGoal(Goal):
    """A metric and an allocation, as one formula."""

    unit: str = "layer"

    kind = "joint"
    language = JOINT
    way = "pattern"
    spread = True

    def canonical(self, formula: Formula, way: str | None = None) -> Formula:
        """As any goal's; a metric that reads nothing has no masks and is a FormulaError."""
        form = super().canonical(formula, way)
        if not form.parts[0].names:
            raise FormulaError(f"the metric of {formula.text} is a constant: it orders nothing")
        return form

    def seeds(self) -> Mapping[str, Formula]:
        """Every published metric, uniform, and some with an allocation that suits it."""
        found = {name: _joint(metric, "0") for name, metric in seeds.items()}
        for name in ("wanda", "gblm", "pruner-zero"):
            for text in ("atp(0.2)", "snip"):
                found[f"{name} {text}"] = _joint(seeds[name], allocation(text).text)
        return found

    def fitness(self, bench: Workbench, way: str | None = None) -> JointFitness:
        """Judges a metric and an allocation under a pattern."""
        return JointFitness(
            bench.loaded.model,
            bench.statistics,
            bench.windows("validation", spread=self.spread),
            sparsity=self.sparsity,
            pattern=way or self.pattern,
            unit=self.unit,
            dtype=bench.dtype,
        )

    def rivals(self) -> list[Rival]:
        """The seeds, each metric under its own pattern or the search's."""
        return [
            _metric_rival(name, name.split()[0], formula, self.pattern)
            for name, formula in self.seeds().items()
        ]

    def recipe(self, formula: Formula) -> Recipe:
        """Both parts."""
        metric, way = formula.parts
        return Recipe(
            metric=metric.text,
            allocation=way.text,
            unit=self.unit,
            sparsity=self.sparsity,
            pattern=self.pattern,
        )


def _metric_rival(name: str, metric: str, formula: Formula, pattern: str) -> Rival:
    """A published metric under its own code's pattern or another."""
    entry = METRICS[metric]
    ways = dict.fromkeys((entry.pattern, pattern))
    return Rival(entry.paper, tuple(Choice(name, formula, way) for way in ways))


def _joint(metric: Formula, allocation_text: str) -> Formula:
    return parse(f"joint({metric.text}, {allocation_text})", JOINT)


GOALS: Mapping[str, type[Goal]] = {
    goal.kind: goal for goal in (MetricGoal, AllocationGoal, JointGoal)
}


def restored(stored: Mapping[str, Any], where: object) -> Goal:
    """The goal of a run directory.

    Raises:
        GppruneError: the stored values are not those of a search that this gpprune knows.
    """
    kind = stored.get("goal")
    if kind not in GOALS:
        raise GppruneError(
            f"the run {where} is not a search that can go on: problem.goal in its settings.toml "
            f"is {kind!r}, not one of {', '.join(GOALS)}"
        )
    try:
        values = {name: value for name, value in stored.items() if name != "goal"}
        return TypeAdapter(GOALS[str(kind)]).validate_python(values, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise GppruneError(
            f"the run {where} is not a {kind} search that can go on: problem.{place} in its "
            f"settings.toml: {first['msg'].lower()}"
        ) from error
