"""Formulas judged as their recipes prune: block after block, in one shot or several."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.evals.fitness import ModelFitness
from gpprune.evals.masking import Masking
from gpprune.evals.precision import copy_as
from gpprune.primitives import Formula
from gpprune.prune import UPDATES, Recipe, Update, linear_layers, prune_model

RECIPE = "recipe"
"""The draft of a search that judges formulas by all that their recipes do."""


def judging_update(update: str, draft: str | None) -> Update:
    """The update that a search judges by.

    Args:
        update: what its recipe does, a name of `gpprune.prune.UPDATES`.
        draft: such a name; `RECIPE`: the update itself; None: its own draft, if it has one.

    Raises:
        UsageError: there is no such update.
    """
    own = UPDATES.find(update)
    if draft is None:
        return own.draft or own
    return own if draft == RECIPE else UPDATES.find(draft)


class RecipeFitness(ModelFitness):
    """A fitness whose copy is pruned by `gpprune.prune_model`, anew for each formula.

    It judges what the recipe will do, statistics of pruned blocks and all, where a `ModelFitness`
    stands on those of the dense model. That takes as long as pruning does: it is for a GPU, small
    models, or few candidates.
    """

    def __init__(
        self,
        masking: Masking,
        windows: Tensor,
        *,
        recipe_of: Callable[[Formula], Recipe],
        calibration: Tensor,
        **how: Any,
    ) -> None:
        """Make the copies that are pruned and judged.

        Args:
            masking: of the dense model, whose statistics it holds for recipes that read them.
            windows: `[cases, length]`, int64: what is judged on.
            recipe_of: how a formula prunes; the masking says under which pattern.
            calibration: `[samples, length]`, int64.
            **how: `loss`, `update`, `damping` and `dtype`, as of `ModelFitness`.

        Raises:
            UsageError: as `ModelFitness`.
        """
        super().__init__(masking, windows, **how)
        self._recipe_of = recipe_of
        self._own = self._update  # another one is asked for masks alone
        self._calibration = calibration
        same = next(masking.model.parameters()).dtype == next(self._model.parameters()).dtype
        self._whole = self._model if same else copy_as(masking.model)

    def fingerprint(self, formula: Formula) -> str | None:
        """As the masking's, if formulas that prune the dense model alike prune alike."""
        return super().fingerprint(formula) if self._is_told_by_masks(formula) else None

    def _identity(self, formula: Formula) -> Hashable:
        return super()._identity(formula) if self._is_told_by_masks(formula) else formula.text

    def _is_told_by_masks(self, formula: Formula) -> bool:
        """Whether it gives other models zeros as it does the dense one: later shots ask again."""
        recipe = self._recipe_of(formula)
        return self._update is not self._own or recipe.shots == 1 or recipe.allocation == "uniform"

    def estimate(self, formula: Formula) -> None:
        """Nothing: the curvature of the dense model says little of later blocks."""

    def _write_of(self, formula: Formula) -> None:
        if self._update is not self._own:
            super()._write_of(formula)
            return
        content = (self.masking, self._update, formula.text)
        if self._state.content == content:
            return
        self._state.content = None
        next(iter(self.masking.masks(formula)))  # what a masking refuses is refused here, too
        layers = linear_layers(self._whole)
        for name, dense in self.masking.layers.items():
            layers[name].write(dense.weight)
        recipe = self._recipe_of(formula).model_copy(update=self.masking.stated)
        try:
            prune_model(self._whole, recipe, self._calibration, dense=self.masking.statistics)
        except UsageError:
            raise
        except GppruneError as error:  # what is measured is of what the formula has pruned
            raise Unfit(str(error)) from error
        if self._whole is not self._model:
            for name, layer in layers.items():
                self._pruned[name].write(layer.weight)
        self._state.content = content
