"""Take whole experts out of a model: those of each mixture that a metric says cost the least."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.allocate.budget import total_zeros
from gpprune.prune.coupled.gone import Statistics, holds
from gpprune.prune.measure.calibrate import calibrate
from gpprune.prune.model.coupling.axes import Coupling, values_at
from gpprune.prune.model.coupling.mixtures import choices, take_out_experts
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.coverage import coverage
from gpprune.prune.model.experts.traffic import FEW, Reached, expert_of, expert_tokens
from gpprune.prune.model.shapes import Shapes
from gpprune.prune.model.structure import linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.masks import check_scores
from gpprune.prune.select.patterns import EXPERTS
from gpprune.prune.select.scores import layer_scores
from gpprune.prune.zeros import recipe_kernel


@dataclass(frozen=True)
class RemovedExperts:
    """Which experts were taken out of a model.

    Attributes:
        before: how many each mixture had.
        gone: by the name of its list of experts, the places that those had which went.
        weights: how many weights of the blocks' matrices went with them.
        size: how many these matrices had.
    """

    before: int
    gone: Mapping[str, tuple[int, ...]]
    weights: int
    size: int

    @property
    def sentence(self) -> str:
        """What went, for a reader."""
        each = len(next(iter(self.gone.values())))
        return (
            f"{each} of {self.before} experts taken out of each of {len(self.gone)} mixtures: "
            f"{self.weights:,} of {self.size:,} weights of the blocks "
            f"({100 * self.weights / self.size:.1f} %); the routers choose among the others"
        )

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of text: each list of experts, how many stay, and which went."""
        rows = [
            [name, f"{self.before - len(places)}", ", ".join(map(str, places))]
            for name, places in self.gone.items()
        ]
        return ["experts", "stay", "taken out"], rows

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        gone = {name: list(places) for name, places in self.gone.items()}
        share = self.weights / self.size
        return {"before": self.before, "gone": gone, "weights": self.weights, "share": share}


def takes_experts(recipe: Recipe) -> bool:
    """Whether a recipe takes whole experts out.

    Raises:
        UsageError: it does, and asks for something that does not go with it.
    """
    if EXPERTS not in recipe.shape.units:
        return False
    asked = {
        f"the weight update {recipe.update!r}: of what goes nothing stays": recipe.update != "none",
        f"{recipe.shots} shots": recipe.shots > 1,
        "training as it prunes: train what it wrote with gpprune recover": recipe.recover > 0,
        "synthetic samples": recipe.synthetic_samples > 0,
        f"a cap of {recipe.cap:g}": recipe.cap < 1,
        "idle experts left dense: they are the first to go": recipe.idle_experts == "dense",
    }
    for what, true in asked.items():
        if true:
            raise UsageError(f"the pattern {EXPERTS!r} does not go with {what}")
    return True


def prune_experts(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    *,
    dense: Statistics | None = None,
    progress: Progress = silent,
) -> tuple[RemovedExperts, Reached | None]:
    """Take whole experts out of a model, in place, as many of each mixture.

    An expert costs the sum of what its weights cost by the metric. Statistics are sums over the
    tokens that came to it, so that one that few come to costs little. Of experts that fewer than
    `FEW` tokens reached too little is known: they go first, those with the fewest tokens before
    the others. What the routers know of those that went goes with them, and tokens go to others
    (Lu et al. 2024, arXiv 2402.14800, drop experts so, by what the block's output loses).

    Args:
        model: a causal language model, dense.
        recipe: with the pattern ``"experts"``.
        calibration: ``[samples, length]``, int64.
        dense: by layer name, what has been measured of the model on it, if all has.
        progress: called as ``progress(label, done, total)``.

    Returns:
        Which went, and how many tokens came to each, if the metric reads anything of them.

    Raises:
        UsageError: the sparsity is less than one expert of each mixture, or leaves fewer than a
            token goes to.
        Unfit: the metric gives NaN.
        GppruneError: the model has no experts that can be taken out.
    """
    axes, tokens = _mixtures(model), calibration[:1].to(next(model.parameters()).device)
    count = _count(model, recipe, axes, choices(model, axes, tokens))
    reached, statistics = None, dense or {}
    if reads := recipe.shares_by:
        reached = expert_tokens(model, calibration, "first", progress)
        if not holds(statistics, linear_layers(model), reads):
            statistics = calibrate(model, calibration, reads, progress=progress)
    size = coverage(model).size
    gone = _gone(model, recipe, statistics, reached, axes, count)
    take_out_experts(model, gone, tokens)
    places = {axis.name: tuple(own.nonzero().flatten().tolist()) for axis, own in gone.items()}
    return RemovedExperts(axes[0].units, places, size - coverage(model).size, size), reached


def _mixtures(model: nn.Module) -> list[Coupling]:
    """The axes of experts of a model.

    Raises:
        GppruneError: it has none, one of them is refused, or units of blocks were taken out.
    """
    found = couplings(model)
    if refused := [axis for axis in found.refused if axis.kind == EXPERTS]:
        raise GppruneError(
            f"the experts {refused[0].name!r} cannot be taken out: {refused[0].why}, as where a "
            "router chooses groups of experts first, or not by its weights alone"
        )
    if Shapes.of(model).shapes:
        raise GppruneError(
            "the model's blocks have sizes of their own, as gpprune shrink leaves them, which no "
            "configuration says: take experts out first, and shrink what is left"
        )
    axes = [axis for axis in found.offered if axis.kind == EXPERTS]
    if not axes:
        raise GppruneError(
            "the model has no experts that can be taken out: those are stored as one parameter, by "
            "the experts' interface of transformers 5"
        )
    return axes


def _count(model: nn.Module, recipe: Recipe, axes: Sequence[Coupling], chosen: int) -> int:
    """How many experts of each mixture a recipe takes.

    Args:
        model: the model.
        recipe: with a sparsity, which is of all matrices of the blocks.
        axes: its mixtures.
        chosen: to how many experts a token goes.

    Raises:
        UsageError: none, or too many.
        GppruneError: mixtures have not equally many.
    """
    numbers = sorted({axis.units for axis in axes})
    if len(numbers) > 1:
        raise GppruneError(f"the mixtures have {numbers} experts: equally many are needed")
    total, one = coverage(model).size, sum(_size(model, axis) for axis in axes)
    count, most = total_zeros(recipe.sparsity, total) // one, numbers[0] - chosen
    if most < 1:
        raise UsageError(f"every token goes to all {numbers[0]} experts of a mixture: none can go")
    if count < 1:
        raise UsageError(
            f"one of {numbers[0]} experts of each of {len(axes)} mixtures has {one:,} of "
            f"{total:,} weights of the blocks, more than a sparsity of {recipe.sparsity:g}: give "
            f"at least {math.ceil(10**6 * one / total) / 10**6:g}"
        )
    if count > most:
        highest = math.floor(10**6 * ((most + 1) * one - 1) / total) / 10**6
        raise UsageError(
            f"a sparsity of {recipe.sparsity:g} takes more than {most} of {numbers[0]} experts of "
            f"each mixture, and every token goes to {chosen} of them: "
            f"give less than {highest:g}"
        )
    return count


def _size(model: nn.Module, axis: Coupling) -> int:
    """How many weights of matrices go with one expert."""
    shapes = [
        values_at(model, place).shape
        for place in axis.places
        if not place.parameter.rpartition(".")[2].endswith("bias")
    ]
    return sum(math.prod(shape) // axis.units for shape in shapes if len(shape) > 1)


def _gone(
    model: nn.Module,
    recipe: Recipe,
    statistics: Statistics,
    reached: Reached | None,
    axes: Sequence[Coupling],
    count: int,
) -> dict[Coupling, Tensor]:
    """Of each mixture the experts that go, bool ``[experts]``."""
    layers = linear_layers(model)
    score, costs = recipe_kernel(recipe, layers), dict[str, float]()
    for name, layer in layers.items():
        if layer.stacked:
            scores = layer_scores(score, layer.weight, statistics.get(name))
            check_scores(scores)
            expert = expert_of(layer)
            costs[expert] = costs.get(expert, 0.0) + float(scores.sum(dtype=torch.float64))
    few = {} if reached is None else reached.few
    found = {}
    for axis in axes:
        names = [f"{axis.name}.{place}" for place in range(axis.units)]
        order = sorted(
            range(axis.units), key=lambda at: (few.get(names[at], FEW), costs[names[at]])
        )
        found[axis] = torch.zeros(axis.units, dtype=torch.bool)
        found[axis][order[:count]] = True
    return found
