"""How many weights of each layer a recipe's allocation prunes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gpprune.progress import Progress, silent
from gpprune.prune.allocate.allocator import Allocator
from gpprune.prune.allocate.learned import LEARNED
from gpprune.prune.model.structure import linear_layers
from gpprune.prune.recipe import Recipe


def recipe_zeros(
    model: nn.Module,
    recipe: Recipe,
    tokens: Tensor,
    statistics: Mapping[str, Mapping[str, Tensor]],
    progress: Progress = silent,
) -> dict[str, int]:
    """The number of zeros of every layer by its name, as a recipe's allocation has it.

    Args:
        model: dense.
        recipe: how to prune.
        tokens: ``[samples, length]``, int64: what a learned allocation learns on.
        statistics: of the dense model's layers by name, by layer name.
        progress: called as ``progress(label, done, total)``.

    Raises:
        Unfit: the allocation gives a value that is not finite.
        UsageError: a statistic that it reads was not measured.
    """
    layers = linear_layers(model)
    allocator = Allocator(layers, statistics, recipe.sparsity, recipe.unit)
    if recipe.allocator is None:
        learn = LEARNED.find(recipe.allocation).learn
        learned = learn(model, recipe.formula, tokens, statistics, recipe.sparsity, progress)
        zeros = allocator.zeros_near(learned, recipe.shape)
    else:
        zeros = allocator.zeros(recipe.allocator, recipe.formula, recipe.shape)
    return dict(zip(layers, zeros.tolist(), strict=True))
