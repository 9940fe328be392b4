"""What a formula prunes: the masks that it gives the layers of a dense model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor, nn

from gpprune.compile import Kernel, behaviour, kernel
from gpprune.errors import Unfit
from gpprune.primitives import Formula
from gpprune.prune import (
    Gone,
    LinearLayer,
    check_weights,
    exact_mask,
    layer_scores,
    linear_layers,
    parse_pattern,
    prune_mask,
    zeros_under,
)

Statistics = Mapping[str, Mapping[str, Tensor]]
"""Of each layer by its name, by the statistic's name."""
Masked = tuple[LinearLayer, Tensor | Gone]
"""A dense layer and what goes: a mask, bool ``[out, in]``, True where a weight does; or sides."""

# Scores of a model that compete across layers are computed once if they are no more than these,
# 1 GiB of them, and else for each of three passes.
_HELD = 1 << 28


@dataclass(frozen=True)
class LayerZeros:
    """How many weights of a layer go.

    Attributes:
        name: of the layer in the model.
        role: its name inside its block; all experts have the same.
        block: the decoder block that it is of.
        zeros: how many go.
        size: of how many.
    """

    name: str
    role: str
    block: int
    zeros: int
    size: int


class Masking(ABC):
    """Masks of one kind of formula on one dense model, which is only read.

    Weights are scored as the model holds them; float32 is right.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Statistics,
        *,
        sparsity: float | None,
        pattern: str = "row",
    ) -> None:
        """Look at the model.

        Args:
            model: the dense causal language model.
            statistics: by layer name, as `gpprune.prune.calibrate` measures them; a formula that
                reads one that is missing is a UsageError.
            sparsity: the share of weights to prune; None where the pattern implies it.
            pattern: which weights compete, see `gpprune.prune.prune_mask`.

        Raises:
            UsageError: the sparsity or the pattern is impossible, or does not fit a layer.
            GppruneError: the model has no linear layers in blocks, or a damaged weight.
        """
        self.model = model
        self.layers = linear_layers(model)
        check_weights(self.layers)
        self.statistics = statistics
        self.pattern = parse_pattern(pattern)
        self.sparsity = self.pattern.target(sparsity)
        self.pattern.check_model({name: each.shape for name, each in self.layers.items()})
        sizes = [layer.size for layer in self.layers.values()]
        self._elements = sum(sizes)
        self._device = next(iter(self.layers.values())).weight.device
        competes = self.pattern.across and not self.pattern.units
        self._holds = competes and self._elements <= _HELD
        room = self._elements if self._holds else max(sizes)
        self._buffer = torch.empty(room, dtype=torch.float32, device=self._device)
        starts = accumulate(sizes, initial=0) if self._holds else repeat(0)
        self._starts = dict(zip(self.layers, starts, strict=False))

    @property
    def stated(self) -> dict[str, str]:
        """What a recipe says of it, beside formulas and sparsity."""
        return {"pattern": self.pattern.text}

    @abstractmethod
    def masks(self, formula: Formula) -> Iterator[Masked]:
        """Every layer with its mask, in the model's order.

        Raises:
            Unfit: the formula cannot be pruned by: it reads nothing, gives a layer scores that are
                NaN or all the same, or a unit a sparsity that is not finite.
            UsageError: it reads a statistic that was not measured.
        """

    def layer_zeros(self, formula: Formula) -> tuple[LayerZeros, ...]:
        """How many weights of each layer go.

        Raises:
            Unfit, UsageError: as `masks`.
        """
        found = []
        for layer, mask in self.masks(formula):
            goes = mask.mask if isinstance(mask, Gone) else mask
            where = (layer.name, layer.role, layer.block)
            found.append(LayerZeros(*where, int(goes.sum()), layer.size))
        return tuple(found)

    def fingerprint(self, formula: Formula) -> str | None:
        """Text that is the same for formulas that prune alike, where telling takes no masks.

        None if it cannot be told.

        Raises:
            Unfit: as `masks`.
        """
        return None

    def identity(self, formula: Formula) -> Hashable:
        """What is equal for formulas of equal masks, as far as that is known beforehand."""
        return formula.text

    def metric_of(self, formula: Formula) -> Formula:
        """The metric that weights are pruned by: an update that chooses for itself asks it again.

        By default the formula.
        """
        return formula

    def _compiled(self, metric: Formula) -> Kernel:
        score = kernel(metric, elements=self._elements, device=self._device)
        if not score.terminals:
            raise Unfit("no terminal: the formula is a constant")
        return score

    def _scores(self, layer: LinearLayer, score: Kernel) -> Tensor:
        """A layer's scores, float32 ``[out, in]``, good until those of the next layer.

        Where the buffer holds those of all layers, until the next formula's.
        """
        weight, start = layer.weight, self._starts[layer.name]
        buffer = self._buffer[start : start + weight.numel()].view(weight.shape)
        scores = layer_scores(score, weight, self.statistics.get(layer.name, {}), buffer)
        lowest, highest = torch.aminmax(scores)
        if torch.isnan(lowest) or torch.isnan(highest):
            raise Unfit(f"NaN among the scores of {layer.name}")
        if lowest == highest and not self.pattern.across:
            raise Unfit(f"all scores of {layer.name} are {float(lowest):.4g}")
        return scores

    def _masks_across(self, score: Kernel) -> Iterator[Masked]:
        """Every layer with its mask under a pattern across the model."""
        held: dict[str, Tensor] = {}
        ends: list[Tensor] = []

        def scores(layer: LinearLayer) -> Tensor:
            if layer.name in held:
                return held[layer.name]
            found = self._scores(layer, score)
            ends.extend(torch.aminmax(found))
            if self._holds:
                held[layer.name] = found
            return found

        zeros = zeros_under(self.layers.values(), scores, self.sparsity, self.pattern)
        if torch.stack(ends).eq(ends[0]).all():
            raise Unfit(f"all scores of the model are {float(ends[0]):.4g}")
        for layer, count in zip(self.layers.values(), zeros, strict=True):
            yield layer, exact_mask(scores(layer), count, self.pattern)


class MetricMasking(Masking):
    """Masks of metrics: every layer is pruned to the same sparsity by the metric's scores.

    Under a pattern across the model, the scores share the sparsity out.
    """

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of a metric."""
        score = self._compiled(formula)
        if self.pattern.across:
            yield from self._masks_across(score)
            return
        for layer in self.layers.values():
            scores = self._scores(layer, score)
            yield layer, prune_mask(scores, self.sparsity, self.pattern)

    def fingerprint(self, formula: Formula) -> str | None:
        """The order in which it puts a fixed probe's weights, see `gpprune.compile.behaviour`."""
        group = self.pattern.group
        return None if group is None else behaviour(formula, group)
