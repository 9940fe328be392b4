"""Permute the channels of a model so that N:M keeps more, and fold that into its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.coupled.gone import Statistics, holds
from gpprune.prune.measure.calibrate import calibrate
from gpprune.prune.model.coupling.axes import Coupling, permute
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.channels import Scores, channel_order, kept_score
from gpprune.prune.select.scores import ScoreKernel, layer_scores


@dataclass(frozen=True)
class PermutedAxis:
    """How the units of a coupled axis were permuted.

    Attributes:
        kind: one of `gpprune.prune.AXES`.
        name: the layer that reads it; of the residual stream empty.
        first: the input of that layer where its first unit lies.
        order: which unit came to each place.
        before: the share of its readers' scores that the pattern kept.
        after: the share that it keeps.
    """

    kind: str
    name: str
    first: int
    order: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Permutation:
    """How the channels of a model were permuted.

    Attributes:
        axes: its axes, in the model's order.
        in_place: the layers of which some inputs stay where they were: no proven axis is theirs,
            or its units are no whole groups of the pattern.
    """

    axes: tuple[PermutedAxis, ...]
    in_place: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """What stays in place, for a reader."""
        some = ", ".join(self.in_place[:2]) + (", ..." if len(self.in_place) > 2 else "")
        return (
            f"{len(self.in_place)} layers keep inputs where they were ({some}): no axis of theirs "
            "could be permuted, and gpprune inspect says why"
        )

    def summary(self) -> dict[str, Any]:
        """The shares kept and what stays in place, as plain values for JSON, without the orders."""
        axes = [{k: v for k, v in asdict(axis).items() if k != "order"} for axis in self.axes]
        return {"axes": axes, "in_place": list(self.in_place)}

    def shares(self) -> dict[tuple[str, int], tuple[int, float, float]]:
        """By kind and units: how many such axes, and the mean shares kept before and after."""
        found: dict[tuple[str, int], list[PermutedAxis]] = {}
        for axis in self.axes:
            found.setdefault((axis.kind, len(axis.order)), []).append(axis)
        return {
            key: (
                len(own),
                sum(axis.before for axis in own) / len(own),
                sum(axis.after for axis in own) / len(own),
            )
            for key, own in found.items()
        }

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of text: what `shares` says."""
        shares = self.shares().items()
        rows = [
            [kind, f"{n:,}", f"{u:,}", f"{b:.4f}", f"{a:.4f}"] for (kind, u), (n, b, a) in shares
        ]
        return ["channels", "axes", "units", "kept before", "after"], rows

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: something else.
        """
        axes = [PermutedAxis(**{**axis, "order": tuple(axis["order"])}) for axis in stored["axes"]]
        for axis in axes:
            if sorted(axis.order) != list(range(len(axis.order))):
                raise ValueError(f"the order of the {axis.kind} of {axis.name!r} is none")
        return cls(tuple(axes), tuple(stored["in_place"]))

    def fold(self, model: nn.Module) -> None:
        """Permute the channels of the model that it was found for, in place.

        Raises:
            GppruneError: the model has no such axes; nothing has been changed then.
        """
        offered = {_key(axis): axis for axis in couplings(model).offered}
        found = []
        for axis in self.axes:
            coupling = offered.get((axis.kind, axis.name, axis.first))
            if coupling is None or coupling.units != len(axis.order):
                raise GppruneError(
                    f"the {axis.kind} of {axis.name or 'the model'!r} were permuted before, and "
                    "are not found now"
                )
            found.append((coupling, torch.tensor(axis.order)))
        for coupling, order in found:
            permute(model, coupling, order)


def permute_channels(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    *,
    statistics: Statistics | None = None,
    progress: Progress = silent,
) -> Permutation:
    """Permute the channels of a model, in place, so that a recipe's N:M pattern keeps more.

    Input features may change places where all weights that hold them follow, so that the model
    computes what it did (see `gpprune.prune.couplings`): the hidden channels of an MLP, the
    dimensions of values within heads that share them, and the residual stream, whose one order
    serves all layers that read it. The order of each axis is the one that `channel_order` finds
    for the metric's scores of all its readers.

    Args:
        model: dense, in evaluation mode.
        recipe: with an N:M pattern and `Recipe.permute`.
        calibration: ``[samples, length]``, int64, to measure on what the metric reads.
        statistics: by layer name, what of it has been measured already, if all of it has.
        progress: called as ``progress(label, done, total)``.

    Returns:
        The orders, and what stays where it was.

    Raises:
        UsageError: the pattern does not fit a layer, or the recipe says nothing to permute by.
        GppruneError: the metric's scores have no finite sum, or it cannot be measured.
    """
    if recipe.permuting is None:
        raise UsageError("the recipe permutes nothing: give it permute, such as metric")
    layers, reads = linear_layers(model), recipe.permutes_by
    for name, layer in layers.items():
        recipe.shape.check_layer(repr(name), layer.weight.shape)
    if reads and (statistics is None or not holds(statistics, layers, reads)):
        statistics = calibrate(model, calibration, reads, progress=progress)
    weights = [layer.weight for layer in layers.values()]
    elements = sum(weight.numel() for weight in weights)
    score = kernel(recipe.permuting, elements=elements, device=weights[0].device)
    job = _Job(layers, recipe, score, statistics or {})
    axes, moved = [], dict.fromkeys(layers, 0)
    found = couplings(model).offered
    for done, coupling in enumerate(found):
        progress("permuting channels", done, len(found))
        readers = job.readers(coupling)
        if not readers:
            continue
        axes.append((coupling, job.permuted(coupling, readers)))
        for name, index in readers.items():
            moved[name] += index.numel()
    progress("permuting channels", len(found), len(found))
    for coupling, axis in axes:
        permute(model, coupling, torch.tensor(axis.order))
    in_place = [name for name, layer in layers.items() if moved[name] < layer.in_features]
    return Permutation(tuple(axis for _, axis in axes), tuple(in_place))


@dataclass(frozen=True, eq=False)
class _Job:
    """What the order of every axis needs."""

    layers: Mapping[str, LinearLayer]
    recipe: Recipe
    score: ScoreKernel
    statistics: Statistics

    def readers(self, coupling: Coupling) -> dict[str, Tensor]:
        """Of each layer that reads an axis in whole groups, the inputs of the units, in order."""
        places = {(place.parameter, place.dim): place.index for place in coupling.places}
        found = {}
        for name, layer in self.layers.items():
            index = places.get((layer.parameter_name, layer.input_dim))
            if index is None:
                continue
            size = self.recipe.shape.width(layer.weight.shape)
            if _in_groups(index, size):
                found[name] = index
        return found

    def permuted(self, coupling: Coupling, readers: Mapping[str, Tensor]) -> PermutedAxis:
        """The order of an axis, by the scores of its readers."""
        pattern = self.recipe.shape
        size = pattern.width(self.layers[next(iter(readers))].weight.shape)
        kept = size - pattern.count(self.recipe.sparsity, size)

        def scores() -> Iterator[Tensor]:
            for name, index in readers.items():
                own = self._scores(name)[:, index.to(self.layers[name].weight.device)]
                yield own.movedim(1, 2).reshape(-1, coupling.units)

        order = channel_order(scores, kept, size)
        whole = _total(scores) or 1.0  # of nothing all is kept
        before, after = (kept_score(scores, kept, size, each) / whole for each in (None, order))
        kind, name, first = _key(coupling)
        return PermutedAxis(kind, name, first, tuple(order.tolist()), before, after)

    def _scores(self, name: str) -> Tensor:
        own = layer_scores(self.score, self.layers[name].weight, self.statistics.get(name))
        if not bool(own.abs().sum(dtype=torch.float32).isfinite()):
            raise Unfit(
                f"in {name!r}: {self.recipe.permute!r} gives scores whose sum is not finite, so "
                "that no permutation keeps most of it: permute by another metric"
            )
        return own


def _key(coupling: Coupling) -> tuple[str, str, int]:
    """What tells an axis of a model from its others."""
    return coupling.kind, coupling.name, int(coupling.places[0].index[0, 0])


def _in_groups(index: Tensor, size: int) -> bool:
    """Whether units ``[units, members]`` lie one after another, in whole groups of inputs."""
    starts = index[::size]
    if len(index) % size or bool((starts % size).any()):
        return False
    steps = torch.arange(size)[None, :, None]
    return torch.equal(index.reshape(-1, size, index.shape[1]), starts[:, None] + steps)


def _total(scores: Scores) -> float:
    return sum(float(matrix.sum(dtype=torch.float64)) for matrix in scores())
