"""A search for a metric: of weights, or of whole units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gpprune.discover.goals.goal import Goal
from gpprune.discover.rivals import Rival, metric_rivals, metric_seeds
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import MetricMasking, metric_masking
from gpprune.primitives import METRIC, Formula
from gpprune.progress import Progress, silent
from gpprune.prune import Recipe, parse_pattern
from gpprune.prune.select.patterns import EXPERTS, FREE

_NOT_SEARCHED = {
    FREE: "is for comparing costs that have a counterpart for rows",
    EXPERTS: "takes experts out of a model, which a search does not",
}


@dataclass(frozen=True)
class MetricGoal(Goal):
    """A metric, under uniform sparsity."""

    pattern: str = "layer"

    kind = "metric"
    language = METRIC
    preset = "quick"
    varied = "pattern"

    def check(self) -> None:
        """As any goal's; free rows and columns, and whole experts, are not searched."""
        units = parse_pattern(self.pattern).units
        for pattern, why in _NOT_SEARCHED.items():
            if pattern in units:
                raise UsageError(
                    f"the pattern {pattern!r} {why}: search under mlp, heads or mlp,heads"
                )
        super().check()

    def seeds(self) -> Mapping[str, Formula]:
        """The published metrics that read what a search measures, or costs of units."""
        return metric_seeds(self.pattern)

    def masking(
        self, bench: Workbench, setting: str | None = None, progress: Progress = silent
    ) -> MetricMasking:
        """Masks of metrics under a pattern; see `Goal.masking`."""
        return metric_masking(
            bench.loaded.model,
            bench.statistics(progress),
            sparsity=self.sparsity,
            pattern=setting or self.pattern,
        )

    def rivals(self) -> list[Rival]:
        """The published metrics, under their own pattern or the search's."""
        return metric_rivals(self.pattern)

    def recipe(self, formula: Formula) -> Recipe:
        """The metric, uniform."""
        return self._recipe(metric=formula.text)
