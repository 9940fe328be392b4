"""How good an allocation is, under a fixed metric or together with its own."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gpprune.evals.fitness import Fitness, Trial
from gpprune.evals.perplexity import Judgement, Progress
from gpprune.primitives import Formula
from gpprune.prune import Allocator, exact_mask, rank_scores


class AllocationFitness(Fitness):
    """Judges allocations under one metric, whose scores are computed and ranked once.

    A candidate costs its reductions, of which each is computed once for the whole search, the
    masks by comparing ranks, and the evaluation. Allocations that give every layer the same
    number of zeros are one, and judged once.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Mapping[str, Mapping[str, Tensor]],
        windows: Tensor,
        *,
        metric: Formula,
        sparsity: float | None,
        pattern: str = "row",
        unit: str = "layer",
        dtype: torch.dtype | None = None,
        progress: Progress | None = None,
    ) -> None:
        """As `Fitness`, and rank the scores of the dense model.

        Args:
            model: the dense causal language model.
            statistics: by layer name.
            windows: `[cases, length]`, int64.
            metric: what weights are pruned by, as it stands (its values are `S`).
            sparsity: the share of all weights to prune.
            pattern: which weights compete.
            unit: "layer" or "block", see `gpprune.prune.Allocator`.
            dtype: what to judge in.
            progress: called as `progress("ranking the scores", done, layers)`.

        Raises:
            UsageError, GppruneError: as `Fitness`; an unknown unit.
            Unfit: the metric gives a layer no order.
        """
        super().__init__(
            model, statistics, windows, sparsity=sparsity, pattern=pattern, dtype=dtype
        )
        self._metric = metric
        self._allocator = Allocator(self._dense, statistics, self._sparsity, unit)
        score = self._compiled(metric.canonical(self._pattern.group))
        self._ranks = []
        for done, layer in enumerate(self._dense.values(), start=1):
            self._ranks.append(rank_scores(self._scores(layer, score), self._pattern))
            if progress is not None:
                progress("ranking the scores", done, len(self._dense))
        self._known: dict[tuple[int, ...], list[float]] = {}
        self._others = {(self._sparsity, self._allocator.unit): self}

    def under(self, *, sparsity: float | None = None, unit: str | None = None) -> AllocationFitness:
        """The same metric on the same copy of the model at another sparsity or for another unit.

        It shares the ranks, the reductions and the copy, so a trial of the one ends the other's.
        Asked again, it is the same object, with what it has judged.
        """
        target = self._sparsity if sparsity is None else self._pattern.target(sparsity)
        place = (target, unit or self._allocator.unit)
        if place in self._others:
            return self._others[place]
        alike = [other for (_, own), other in self._others.items() if own == place[1]]
        allocator = alike[0]._allocator.at(target) if alike else None
        other = copy.copy(self)
        other._sparsity = target
        other._allocator = allocator or Allocator(self._dense, self._statistics, target, place[1])
        other._known = {}
        self._others[place] = other
        return other

    def layer_sparsities(self, zeros: Tensor) -> list[float]:
        """The share of zeros of each layer, in the model's order."""
        return (zeros / self._allocator.layer_sizes).tolist()

    def zeros(self, allocation: Formula) -> Tensor:
        """How many weights of each layer an allocation prunes, int64 `[layers]`."""
        return self._allocator.zeros(allocation, self._metric, self._pattern)

    def fingerprint(self, formula: Formula) -> str:
        """The zeros of every layer, digested."""
        return _digest(self.zeros(formula))

    def judge_zeros(self, zeros: Tensor, text: Tensor) -> Judgement:
        """As `judge`, of given zeros of each layer, int64 `[layers]`."""
        self._count()
        self._write(zeros)
        return Judgement(torch.tensor([self._loss(w) for w in text], dtype=torch.float64))

    def exact(self, sparsities: Mapping[str, float]) -> Tensor:
        """Zeros of each layer, int64 `[layers]`, that bring sparsities by name to the budget."""
        return self._allocator.zeros_near(sparsities, self._pattern)

    def prepare(self, formula: Formula) -> Trial:
        """As `Fitness.prepare`, for an allocation; windows judged before are not judged again."""
        prepared = self._count()
        zeros = self.zeros(formula)
        known = self._known.setdefault(tuple(zeros.tolist()), [])
        judge = self._trial(formula, prepared)
        written = False

        def trial(start: int, stop: int) -> list[float]:
            nonlocal written
            self._check(formula, prepared)
            if stop > len(known) and not written:
                self._write(zeros)
                written = True
            while stop > len(known):
                known.extend(judge(len(known), len(known) + 1))
            return known[start:stop]

        return trial

    def _prune(self, formula: Formula) -> None:
        self._write(self.zeros(formula))

    def _write(self, zeros: Tensor) -> None:
        for layer, ranks, count in zip(
            self._dense.values(), self._ranks, zeros.tolist(), strict=True
        ):
            self._write_layer(layer, ranks.mask(count))


class JointFitness(Fitness):
    """Judges a metric and an allocation together, as one formula of the `JOINT` language."""

    def __init__(
        self,
        model: nn.Module,
        statistics: Mapping[str, Mapping[str, Tensor]],
        windows: Tensor,
        *,
        sparsity: float | None,
        pattern: str = "layer",
        unit: str = "layer",
        dtype: torch.dtype | None = None,
    ) -> None:
        """As `Fitness`; `unit` is "layer" or "block", see `gpprune.prune.Allocator`."""
        super().__init__(
            model, statistics, windows, sparsity=sparsity, pattern=pattern, dtype=dtype
        )
        self._allocator = Allocator(self._dense, statistics, self._sparsity, unit)

    def zeros(self, formula: Formula) -> Tensor:
        """How many weights of each layer the formula prunes, int64 `[layers]`."""
        metric, allocation = formula.parts
        return self._allocator.zeros(allocation, metric, self._pattern)

    def fingerprint(self, formula: Formula) -> str:
        """The metric's order of a fixed probe and, digested, the zeros of every layer."""
        metric, _ = formula.parts
        order = self._order(metric) or metric.digest
        return f"{order} {_digest(self.zeros(formula))}"

    def _prune(self, formula: Formula) -> None:
        metric, _ = formula.parts
        score = self._compiled(metric)
        zeros = self.zeros(formula)
        for layer, count in zip(self._dense.values(), zeros.tolist(), strict=True):
            self._write_layer(layer, exact_mask(self._scores(layer, score), count, self._pattern))


def _digest(zeros: Tensor) -> str:
    return hashlib.sha256(zeros.cpu().numpy().tobytes()).hexdigest()
