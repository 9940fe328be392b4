"""What a metric prunes of whole units: MLP channels and heads, or free rows and columns."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

from torch import nn

from gpprune.evals.masking import Masked, MetricMasking, Statistics
from gpprune.primitives import Formula
from gpprune.prune import Gone, Recipe, couplings, parse_pattern, units_to_go


class UnitMasking(MetricMasking):
    """The units that go by metrics, on one dense model; see `gpprune.prune.units_to_go`.

    Metrics whose units are the same are one. Nothing tells before they are scored.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Statistics,
        *,
        sparsity: float | None,
        pattern: str = "mlp",
    ) -> None:
        """As `Masking`, and find the model's units.

        Args:
            model: the dense causal language model.
            statistics: by layer name.
            sparsity: the share of weights to prune.
            pattern: one of whole units.

        Raises:
            UsageError, GppruneError: as `Masking`.
        """
        super().__init__(model, statistics, sparsity=sparsity, pattern=pattern)
        self._coupled = couplings(model)
        self._last: tuple[str, dict[str, Gone]] | None = None

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of a metric: the rows and columns of every layer that go."""
        gone = self._gone(formula)
        for name, layer in self.layers.items():
            yield layer, gone[name]

    def identity(self, formula: Formula) -> Hashable:
        """A digest of the units that go."""
        digest = hashlib.sha256()
        for gone in self._gone(formula).values():
            for side in (gone.outputs, gone.inputs):
                digest.update(side.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _gone(self, formula: Formula) -> dict[str, Gone]:
        if self._last is None or self._last[0] != formula.text:
            self._compiled(formula)  # a constant is refused
            recipe = Recipe(metric=formula.text, pattern=self.pattern.text, sparsity=self.sparsity)
            found = units_to_go(self.model, recipe, self.statistics, coupled=self._coupled)
            self._last = formula.text, found
        return self._last[1]


def metric_masking(
    model: nn.Module, statistics: Statistics, *, sparsity: float | None, pattern: str
) -> MetricMasking:
    """Masks of metrics under a pattern, of single weights or whole units."""
    made = UnitMasking if parse_pattern(pattern).units else MetricMasking
    return made(model, statistics, sparsity=sparsity, pattern=pattern)
