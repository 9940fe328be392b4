"""What an allocation prunes under one metric, and a metric and an allocation together."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping

from torch import Tensor, nn

from gpprune.compile import behaviour
from gpprune.evals.masking import Masked, Masking, Statistics
from gpprune.primitives import Formula
from gpprune.progress import Progress, silent
from gpprune.prune import Allocator, Ranks, exact_mask, rank_scores


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
            UsageError, GppruneError: as `Masking`; an unknown unit, a pattern across the model.
            Unfit: the metric gives a layer no order.
        """
        super().__init__(model, statistics, sparsity=sparsity, pattern=pattern)
        if self.pattern.across:
            self.pattern.check_room("an allocation")
        self.metric = metric
        self.allocator = Allocator(self.layers, statistics, self.sparsity, unit)
        score = self._compiled(metric.canonical(self.pattern.group))
        self._ranks: list[Ranks] = []
        for done, layer in enumerate(self.layers.values(), start=1):
            self._ranks.append(rank_scores(self._scores(layer, score), self.pattern))
            progress("ranking the scores", done, len(self.layers))
        self._variants = {(self.sparsity, self.allocator.unit): self}

    @property
    def stated(self) -> dict[str, str]:
        """Its unit too."""
        return {**super().stated, "unit": self.allocator.unit}

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
        """How many weights of each layer the formula's allocation prunes, int64 ``[layers]``."""
        metric, allocation = formula.parts
        return self.allocator.zeros(allocation, metric, self.pattern)

    def metric_of(self, formula: Formula) -> Formula:
        """The metric of the pair."""
        return formula.parts[0]

    def masks(self, formula: Formula) -> Iterator[Masked]:
        """As `Masking.masks`, of a joint formula.

        Raises:
            UsageError: the pattern shares out by itself, and the allocation is more than a number.
        """
        metric, allocation = formula.parts
        score = self._compiled(metric)
        if self.pattern.across:
            self._check_room(allocation)
            yield from self._masks_across(score)
            return
        counts = self.zeros(formula).tolist()
        for layer, count in zip(self.layers.values(), counts, strict=True):
            yield layer, exact_mask(self._scores(layer, score), count, self.pattern)

    def fingerprint(self, formula: Formula) -> str:
        """The metric's order of a fixed probe and, digested, the zeros of every layer.

        The order alone under a pattern across the model: the zeros follow from it.
        """
        metric, allocation = formula.parts
        self._check_room(allocation)
        group = self.pattern.group
        order = (None if group is None else behaviour(metric, group)) or metric.digest
        return order if self.pattern.across else f"{order} {_digest(self.zeros(formula))}"

    def _check_room(self, allocation: Formula) -> None:
        if self.pattern.across and allocation.names:
            self.pattern.check_room(f"the allocation {allocation.text!r}")


def _digest(zeros: Tensor) -> str:
    return hashlib.sha256(zeros.cpu().numpy().tobytes()).hexdigest()
