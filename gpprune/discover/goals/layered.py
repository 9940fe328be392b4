"""A search for how sparsity is shared out over layers, alone or with a metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from gpprune.discover.goals.goal import Goal
from gpprune.discover.rivals import Rival, allocation_rivals, joint_seeds, metric_rival
from gpprune.discover.texts import LAYERED_TEXTS, Texts
from gpprune.discover.workbench import Workbench
from gpprune.evals import AllocationMasking, JointMasking, ModelFitness
from gpprune.primitives import ALLOCATION, ALLOCATIONS, JOINT, Formula, FormulaError, metric
from gpprune.progress import Progress, silent
from gpprune.prune import Recipe


@dataclass(frozen=True)
class AllocationGoal(Goal):
    """An allocation to each `unit` ("layer" or "block"), under a `metric` by name or text."""

    texts: Texts = LAYERED_TEXTS
    sparsity: float = 0.7
    metric: str = "wanda"
    unit: str = "layer"

    kind = "allocation"
    language = ALLOCATION
    preset = "allocation"
    varied = "unit"
    spread = True

    @property
    def statistics(self) -> frozenset[str]:
        """Those of any allocation and of the metric."""
        return super().statistics | metric(self.metric).names

    def seeds(self) -> Mapping[str, Formula]:
        """The published allocations."""
        return {name: entry.formula for name, entry in ALLOCATIONS.items()}

    def masking(
        self, bench: Workbench, setting: str | None = None, progress: Progress = silent
    ) -> AllocationMasking:
        """Masks of allocations for a unit; see `Goal.masking`."""
        return AllocationMasking(
            bench.loaded.model,
            bench.statistics(progress),
            metric=metric(self.metric),
            sparsity=self.sparsity,
            pattern=self.pattern,
            unit=setting or self.unit,
            progress=progress,
        )

    def variant(self, fitness: ModelFitness, bench: Workbench, setting: str) -> ModelFitness:
        """The same ranks for another unit."""
        return fitness.under(cast(AllocationMasking, fitness.masking).under(unit=setting))

    def rivals(self) -> list[Rival]:
        """The published allocations."""
        return allocation_rivals()

    def recipe(self, formula: Formula) -> Recipe:
        """The metric with the allocation."""
        return self._recipe(metric=self.metric, allocation=formula.text, unit=self.unit)


@dataclass(frozen=True)
class JointGoal(Goal):
    """A metric and an allocation to each `unit` ("layer" or "block"), as one formula."""

    texts: Texts = LAYERED_TEXTS
    pattern: str = "layer"
    unit: str = "layer"

    kind = "joint"
    language = JOINT
    preset = "allocation"
    varied = "pattern"
    spread = True

    def canonical(self, formula: Formula, setting: str | None = None) -> Formula:
        """As any goal's; a metric that reads nothing has no masks and is a FormulaError."""
        form = super().canonical(formula, setting)
        if not form.parts[0].names:
            raise FormulaError(f"the metric of {formula.text} is a constant: it orders nothing")
        return form

    def seeds(self) -> Mapping[str, Formula]:
        """Every published metric, uniform, and some with an allocation that suits it."""
        return joint_seeds()

    def masking(
        self, bench: Workbench, setting: str | None = None, progress: Progress = silent
    ) -> JointMasking:
        """Masks of a metric and an allocation under a pattern; see `Goal.masking`."""
        return JointMasking(
            bench.loaded.model,
            bench.statistics(progress),
            sparsity=self.sparsity,
            pattern=setting or self.pattern,
            unit=self.unit,
        )

    def rivals(self) -> list[Rival]:
        """The seeds, each metric under its own pattern or the search's."""
        seeds, own = self.seeds(), self.pattern
        return [metric_rival(name, name.split()[0], seeds[name], own) for name in seeds]

    def recipe(self, formula: Formula) -> Recipe:
        """Both parts."""
        scores, shares = formula.parts
        return self._recipe(metric=scores.text, allocation=shares.text, unit=self.unit)
