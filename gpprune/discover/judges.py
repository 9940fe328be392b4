"""Recipe after recipe judged on one model, with what they share made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import AllocationMasking, Evaluation, Masking, ModelFitness, metric_masking
from gpprune.evals.masking import Masked
from gpprune.progress import Progress
from gpprune.prune import LEARNED, Damping, Recipe


def check_order_of(recipe: Recipe, order: str, name: str) -> None:
    """See that a recipe can be judged in an order, and has no other of its own.

    Args:
        recipe: in question.
        order: in which all are judged.
        name: of the recipe, for a message.

    Raises:
        UsageError: it cannot.
    """
    recipe.in_order(order)
    if recipe.order not in (None, order):
        raise UsageError(
            f"{name} is to be pruned in the order {recipe.order!r}, and the comparison is in the "
            f"order {order!r}: compare in that of the recipes"
        )


@dataclass
class Judges:
    """Judges by recipe after recipe.

    They share one pruned copy of the model, and one ranking of a metric's scores.

    Attributes:
        bench: holds the model and its texts.
        texts: what is judged on, each ``[windows, length]``, int64.
        order: of calibration, one of `gpprune.prune.ORDERS`.
        progress: called as `progress(label, done, total)`.
    """

    bench: Workbench
    texts: Sequence[Tensor]
    order: str
    progress: Progress
    fitness: dict[tuple[str, Damping], ModelFitness] = field(default_factory=dict)  # by update
    ranked: dict[tuple[str, str], AllocationMasking] = field(default_factory=dict)

    def __call__(self, recipe: Recipe) -> list[Evaluation]:
        """How good the model pruned by a recipe is on each text."""
        if self.order != "dense" or not recipe.measures_once:
            return self.bench.pruned(recipe, self.texts, self.order, self.progress)
        masking, masks = self._masks(recipe)
        metric = recipe.formula.canonical(recipe.shape.group)
        fitness = self._fitness(recipe, masking)
        return fitness.evaluate_masks(masks, *self.texts, metric=metric)

    def _masks(self, recipe: Recipe) -> tuple[Masking, Iterator[Masked]]:
        if recipe.allocation == "uniform" or recipe.shape.across:
            uniform = self._uniform(recipe)
            return uniform, uniform.masks(recipe.formula.canonical(recipe.shape.group))
        ranked = self._ranked(recipe)
        return ranked, ranked.masks_of(self._zeros(ranked, recipe))

    def _fitness(self, recipe: Recipe, masking: Masking) -> ModelFitness:
        place = (recipe.update, recipe.damping)
        if place not in self.fitness:
            self.fitness[place] = ModelFitness(
                masking,
                self.texts[0],
                loss=self.bench.loss,
                update=recipe.update,
                damping=recipe.damping,
                dtype=self.bench.dtype,
            )
        return self.fitness[place].under(masking)

    def _uniform(self, recipe: Recipe) -> Masking:
        model, statistics = self.bench.loaded.model, self.bench.statistics(self.progress)
        return metric_masking(model, statistics, sparsity=recipe.sparsity, pattern=recipe.pattern)

    def _ranked(self, recipe: Recipe) -> AllocationMasking:
        place = (recipe.metric, recipe.pattern)
        if place not in self.ranked:
            self.ranked[place] = AllocationMasking(
                self.bench.loaded.model,
                self.bench.statistics(self.progress),
                metric=recipe.formula,
                sparsity=recipe.sparsity,
                pattern=recipe.pattern,
                unit=recipe.unit,
                progress=self.progress,
            )
        return self.ranked[place].under(sparsity=recipe.sparsity, unit=recipe.unit)

    def _zeros(self, masking: AllocationMasking, recipe: Recipe) -> Tensor:
        if recipe.allocator is not None:
            return masking.zeros(recipe.allocator)
        learned = LEARNED.find(recipe.allocation).learn(
            self.bench.loaded.model,
            recipe.formula,
            self.bench.calibration(),
            self.bench.statistics(self.progress),
            recipe.sparsity,
            self.progress,
        )
        return masking.exact(learned)
