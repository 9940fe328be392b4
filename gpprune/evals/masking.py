"""What a formula prunes: the masks that it gives the layers of a dense model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping

import torch
from torch import Tensor, nn

from gpprune.compile import Kernel, behaviour, kernel
from gpprune.errors import Unfit
from gpprune.primitives import Formula
from gpprune.progress import Progress, silent
from gpprune.prune import (
    Allocator,
    LinearLayer,
    Ranks,
    check_weights,
    exact_mask,
    layer_scores,
    linear_layers,
    parse_pattern,
    prune_mask,
    rank_scores,
)

Statistics = Mapping[str, Mapping[str, Tensor]]
"""Of each layer by its name, by the statistic's name."""
Masked = tuple[LinearLayer, Tensor]
"""A dense layer and its mask, bool ``[out, in]``, True where a weight goes."""


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
        for layer in self.layers.values():
            self.pattern.check_layer(repr(layer.name), layer.weight.shape)
        sizes = [layer.weight.numel() for layer in self.layers.values()]
        self._elements = sum(sizes)
        self._device = next(iter(self.layers.values())).weight.device
        self._buffer = torch.empty(max(sizes), dtype=torch.float32, device=self._device)

    @abstractmethod
    def masks(self, formula: Formula) -> Iterator[Masked]:
        """Every layer with its mask, in the model's order.

        Raises:
            Unfit: the formula cannot be pruned by: it reads nothing, gives a layer scores that are
                NaN or all the same, or a unit a sparsity that is not finite.
            UsageError: it reads a statistic that was not measured.
        """

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
        """A layer's scores, float32 ``[out, in]``, good until those of the next layer."""
        weight = layer.weight
        buffer = self._buffer[: weight.numel()].view(weight.shape)
        scores = layer_scores(score, weight, self.statistics.get(layer.name, {}), buffer)
        lowest, highest = torch.aminmax(scores)
        if torch.isnan(lowest) or torch.isnan(highest):
            raise Unfit(f"NaN among the scores of {layer.name}")
        if lowest == highest:
            raise Unfit(f"all scores of {layer.name} are {float(lowest):.4g}")
        return scores


class MetricMasking(Masking):
    """Masks of metrics: every layer is pruned to the same sparsity by the metric's scores."""

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of a metric."""
        score = self._compiled(formula)
        for layer in self.layers.values():
            scores = self._scores(layer, score)
            yield layer, prune_mask(scores, self.sparsity, self.pattern)

    def fingerprint(self, formula: Formula) -> str | None:
        """The order in which it puts a fixed probe's weights, see `gpprune.compile.behaviour`."""
        group = self.pattern.group
        return None if group is None else behaviour(formula, group)


class AllocationMasking(Masking):
    """Masks of allocations under one metric, whose scores are computed and ranked once.

    A candidate costs its reductions, each of which is computed once for a whole search, and a
    comparison of ranks. Allocations that give every layer as many zeros are one.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Statistics,
        *,
        metric: Formula,
        sparsity: float | None,
        pattern: str = "row",
        unit: str = "layer",
        progress: Progress = silent,
    ) -> None:
        """As `Masking`, and rank the scores of the dense model.

        Args:
            model: the dense causal language model.
            statistics: by layer name.
            metric: what weights are pruned by, as it stands (its values are `S`).
            sparsity: the share of all weights to prune; None where the pattern implies it.
            pattern: which weights compete.
            unit: "layer" or "block", see `gpprune.prune.Allocator`.
            progress: called as `progress("ranking the scores", done, layers)`.

        Raises:
            UsageError, GppruneError: as `Masking`; an unknown unit.
            Unfit: the metric gives a layer no order.
        """
        super().__init__(model, statistics, sparsity=sparsity, pattern=pattern)
        self.metric = metric
        self.allocator = Allocator(self.layers, statistics, self.sparsity, unit)
        score = self._compiled(metric.canonical(self.pattern.group))
        self._ranks: list[Ranks] = []
        for done, layer in enumerate(self.layers.values(), start=1):
            self._ranks.append(rank_scores(self._scores(layer, score), self.pattern))
            progress("ranking the scores", done, len(self.layers))
        self._variants = {(self.sparsity, self.allocator.unit): self}

    def under(self, *, sparsity: float | None = None, unit: str | None = None) -> AllocationMasking:
        """The same metric at another sparsity or for another unit; it shares ranks and reductions.

        Asked again, it is the same object.

        Args:
            sparsity: None for its own.
            unit: None for its own.
        """
        target = self.sparsity if sparsity is None else self.pattern.target(sparsity)
        place = (target, unit or self.allocator.unit)
        if place not in self._variants:
            self._variants[place] = self._variant(*place)
        return self._variants[place]

    def _variant(self, target: float, unit: str) -> AllocationMasking:
        other = AllocationMasking.__new__(AllocationMasking)
        other.__dict__.update(self.__dict__)
        other.sparsity = target
        alike = [known for (_, own), known in self._variants.items() if own == unit]
        if alike:
            other.allocator = alike[0].allocator.at(target)
        else:
            other.allocator = Allocator(self.layers, self.statistics, target, unit)
        return other

    def zeros(self, allocation: Formula) -> Tensor:
        """How many weights of each layer an allocation prunes, int64 ``[layers]``."""
        return self.allocator.zeros(allocation, self.metric, self.pattern)

    def exact(self, sparsities: Mapping[str, float]) -> Tensor:
        """Zeros of each layer, int64 ``[layers]``, of sparsities by name brought to the budget."""
        return self.allocator.zeros_near(sparsities, self.pattern)

    def layer_sparsities(self, zeros: Tensor) -> list[float]:
        """The share of zeros of each layer, in the model's order; zeros are int64 ``[layers]``."""
        return (zeros / self.allocator.layer_sizes).tolist()

    def masks_of(self, zeros: Tensor) -> Iterator[Masked]:
        """Every layer with its mask of so many zeros, int64 ``[layers]``."""
        counts = zeros.tolist()
        for layer, ranks, count in zip(self.layers.values(), self._ranks, counts, strict=True):
            yield layer, ranks.mask(count)

    def metric_of(self, formula: Formula) -> Formula:
        """The one metric of all allocations."""
        return self.metric.canonical(self.pattern.group)

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of an allocation."""
        return self.masks_of(self.zeros(formula))

    def fingerprint(self, formula: Formula) -> str:
        """The zeros of every layer, digested."""
        return _digest(self.zeros(formula))

    def identity(self, formula: Formula) -> Hashable:
        """The zeros of every layer."""
        return tuple(self.zeros(formula).tolist())


class JointMasking(Masking):
    """Masks of a metric and an allocation together, one formula of the `JOINT` language."""

    def __init__(
        self,
        model: nn.Module,
        statistics: Statistics,
        *,
        sparsity: float | None,
        pattern: str = "layer",
        unit: str = "layer",
    ) -> None:
        """As `Masking`.

        Args:
            model: the dense causal language model.
            statistics: by layer name.
            sparsity: the share of all weights to prune; None where the pattern implies it.
            pattern: which weights compete.
            unit: "layer" or "block", see `gpprune.prune.Allocator`.
        """
        super().__init__(model, statistics, sparsity=sparsity, pattern=pattern)
        self.allocator = Allocator(self.layers, statistics, self.sparsity, unit)

    def zeros(self, formula: Formula) -> Tensor:
        """How many weights of each layer the formula prunes, int64 ``[layers]``."""
        metric, allocation = formula.parts
        return self.allocator.zeros(allocation, metric, self.pattern)

    def metric_of(self, formula: Formula) -> Formula:
        """The metric of the pair."""
        return formula.parts[0]

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of a joint formula."""
        metric, _ = formula.parts
        score = self._compiled(metric)
        counts = self.zeros(formula).tolist()
        for layer, count in zip(self.layers.values(), counts, strict=True):
            yield layer, exact_mask(self._scores(layer, score), count, self.pattern)

    def fingerprint(self, formula: Formula) -> str:
        """The metric's order of a fixed probe and, digested, the zeros of every layer."""
        metric, _ = formula.parts
        group = self.pattern.group
        order = (None if group is None else behaviour(metric, group)) or metric.digest
        return f"{order} {_digest(self.zeros(formula))}"


def _digest(zeros: Tensor) -> str:
    return hashlib.sha256(zeros.cpu().numpy().tobytes()).hexdigest()
