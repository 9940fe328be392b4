"""How good a formula is: what it prunes, times what is measured of the pruned model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError
from gpprune.evals.evaluation import Evaluation, check_windows
from gpprune.evals.losses.loss import Loss
from gpprune.evals.losses.next_token import NEXT_TOKEN
from gpprune.evals.masking import Masked, Masking
from gpprune.evals.precision import copy_as
from gpprune.primitives import Formula
from gpprune.prune import (
    DAMPING,
    UPDATES,
    Choice,
    Damping,
    Gone,
    LinearLayer,
    Update,
    is_local,
    linear_layers,
    predicted_increase,
    prune_layer,
)

Trial = Callable[[int, int], list[float]]
SAMPLED = 5  # decoder blocks that an estimate is made of


@dataclass
class _State:
    """Of a copy that is pruned."""

    number: int = 0  # of its states, counted
    content: Hashable = None  # what it is pruned by; None: that has no name


class ModelFitness:
    """A copy of a model that formulas prune, one after another, and that is judged on windows.

    It has what a search asks for (`cases`, `prepare`, `fingerprint`): a `masking` says what a
    formula prunes, a `loss` what is measured, and a case is a window of text. One-shot statistics
    stand in for Wanda's sequential order: on SmolLM2-135M the two differ by 1 % of the perplexity,
    and they are measured once for all candidates.

    The dense model is only read; weights are pruned into a copy in the dtype that is judged in.
    Masks that were judged before, as far as `Masking.identity` tells, are not judged again.
    """

    def __init__(
        self,
        masking: Masking,
        windows: Tensor,
        *,
        loss: Loss = NEXT_TOKEN,
        update: str | Update = "none",
        damping: Damping = DAMPING,
        dtype: torch.dtype | None = None,
        kinds: int = 1,
    ) -> None:
        """Make the copy that is pruned.

        Args:
            masking: what a formula prunes, and of which dense model.
            windows: `[cases, length]`, int64: what is judged on.
            loss: what is measured.
            update: what happens to the weights that stay, a name of `gpprune.prune.UPDATES` or
                an entry.
            damping: of the curvature that the update inverts.
            dtype: what to judge in, see `gpprune.evals.compute_dtype`; None: as the model.
            kinds: of how many texts the windows are, in turns.

        Raises:
            UsageError: the windows are impossible, or there is no such update.
        """
        check_windows(windows)
        self.masking, self.windows, self.loss = masking, windows, loss
        self.kinds = kinds
        self._update = UPDATES.find(update) if isinstance(update, str) else update
        self._damping = damping
        self._model = copy_as(masking.model, dtype)
        self._pruned = linear_layers(self._model)
        self._measure = loss.on(self._model, masking.model)
        self._state = _State()  # shared by all that prune this copy
        self._known: dict[Hashable, list[float]] = {}
        self._drawn: tuple[Hashable, list[Masked]] | None = None
        blocks = 1 + max(layer.block for layer in masking.layers.values())
        self._sampled = frozenset(range(blocks // (2 * SAMPLED), blocks, -(-blocks // SAMPLED)))

    def under(self, masking: Masking, update: str | None = None) -> ModelFitness:
        """The same windows and the same copy for another masking of the same dense model.

        A trial of the one ends the other's.

        Args:
            masking: what a formula prunes.
            update: what happens to the weights that stay, a name of `gpprune.prune.UPDATES`; None:
                as here. "none" takes the masks of the masking, even where the update here chooses
                its own, as sparsegpt-blocks does.

        Raises:
            UsageError: there is no such update.
        """
        if masking.model is not self.masking.model:
            raise GppruneError("the other masking is of another model: make a fitness of its own")
        wanted = self._update if update is None else UPDATES.find(update)
        if masking is self.masking and wanted is self._update:
            return self
        other = copy.copy(self)
        other.masking, other._update = masking, wanted
        other._known, other._drawn = {}, None
        return other

    @property
    def cases(self) -> int:
        """How many windows there are."""
        return len(self.windows)

    @property
    def model(self) -> nn.Module:
        """The copy that is pruned and judged.

        It holds what was pruned last. Masks that were judged before are not written again until
        a window is wanted that was not.
        """
        return self._model

    def fingerprint(self, formula: Formula) -> str | None:
        """Text that is the same for formulas that prune alike; see `Masking.fingerprint`."""
        return self.masking.fingerprint(formula)

    def prepare(self, formula: Formula) -> Trial:
        """Prune the copy by a formula.

        Args:
            formula: in whatever canonical form the search keeps.

        Returns:
            `trial(start, stop)`, the losses of these windows. It is good until the next `prepare`
            or `restore`, and a GppruneError afterwards.

        Raises:
            Unfit, UsageError: as `Masking.masks`.
        """
        prepared = self._count()
        identity = self._identity(formula)
        if identity not in self._known:
            self._write_of(formula)
        known = self._known.setdefault(identity, [])

        def trial(start: int, stop: int) -> list[float]:
            if prepared != self._state.number:
                raise GppruneError(
                    f"the model has been pruned by another formula since {formula.text!r} was "
                    "prepared: prepare it again"
                )
            if stop > len(known):
                self._write_of(formula)
            while stop > len(known):
                known.append(self._measure(self.windows[len(known)]))
            return known[start:stop]

        return trial

    def _identity(self, formula: Formula) -> Hashable:
        return self.masking.identity(formula)

    def estimate(self, formula: Formula) -> float | None:
        """What the curvature says that pruning by a formula adds to the loss, without judging it.

        The predicted increase (`gpprune.prune.predicted_increase`) of the layers of a few decoder
        blocks, pruned and updated: a sixth of the work of pruning the model, and no forward pass.
        None where the weight update reads no curvature, as `none`, whose masks cost less than the
        estimate, where it was not measured, and of whole units, of which the masks cost more. It
        follows from the formula alone, not from what was judged before, so that a search that is
        resumed finds it again.

        Raises:
            Unfit, UsageError: as `Masking.masks`.
        """
        whole, held = self.masking.pattern.units, self.masking.statistics
        factors = None if whole else self._update.foretold_by
        layers = [layer for layer in self.masking.layers.values() if layer.block in self._sampled]
        if factors is None or not all(
            held.get(layer.name, {}).keys() >= set(factors) for layer in layers
        ):
            return None
        self._drawn = None  # the last masks go before these are made
        drawn = list(self.masking.masks(formula))
        self._drawn = self.masking.identity(formula), drawn
        metric, total = self.masking.metric_of(formula), 0.0
        for layer, mask in drawn:
            if layer.block in self._sampled:
                new = self._prune(layer, mask, metric, torch.empty_like(layer.weight))
                A, G = (held[layer.name][name] for name in factors)
                total += predicted_increase(layer.weight, new, A, G)
        return total

    def _masks(self, formula: Formula) -> Iterable[Masked]:
        """The masks of a formula; those that its estimate asked for are kept until now."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None and drawn[0] == self.masking.identity(formula):
            return drawn[1]
        return self.masking.masks(formula)

    def evaluate(self, formula: Formula, *texts: Tensor) -> list[Evaluation]:
        """Prune the copy once and judge it on windows that need not be those of the fitness.

        Args:
            formula: as for `prepare`.
            *texts: each `[windows, length]`, int64.

        Returns:
            One evaluation a text.
        """
        self._count()
        self._write_of(formula)
        return [self._evaluated(text) for text in texts]

    def evaluate_masks(
        self, masks: Iterable[Masked], *texts: Tensor, metric: Formula | None = None
    ) -> list[Evaluation]:
        """As `evaluate`, of given masks.

        Args:
            masks: every layer with its own.
            *texts: each `[windows, length]`, int64.
            metric: by which an update that chooses for itself is to choose as many zeros as each
                mask has; without it, it takes the masks.
        """
        self._count()
        self._write(masks, metric)
        return [self._evaluated(text) for text in texts]

    def dense(self) -> Evaluation:
        """The dense model on the fitness's windows; ends the last trial."""
        self.restore()
        return self._evaluated(self.windows)

    def restore(self) -> None:
        """Put the dense weights back into the copy; ends the last trial."""
        self._count()
        self._state.content = None
        for name, layer in self.masking.layers.items():
            self._pruned[name].write(layer.weight)

    def _evaluated(self, windows: Tensor) -> Evaluation:
        losses = [self._measure(window) for window in windows]
        return Evaluation(torch.tensor(losses, dtype=torch.float64), self.loss)

    def _write_of(self, formula: Formula) -> None:
        """Prune the copy by a formula, unless it is what it holds."""
        content = (self.masking, self._update, self.masking.identity(formula))
        if self._state.content != content:
            self._write(self._masks(formula), self.masking.metric_of(formula))
            self._state.content = content

    def _write(self, masks: Iterable[Masked], metric: Formula | None) -> None:
        """Write the dense weights into the copy, pruned and updated."""
        self._state.content = None
        for layer, mask in masks:
            self._prune(layer, mask, metric, self._pruned[layer.name].weight)

    def _prune(
        self, layer: LinearLayer, mask: Tensor | Gone, metric: Formula | None, out: Tensor
    ) -> Tensor:
        """A dense layer's weight, pruned and updated into ``out``."""
        statistics = self.masking.statistics.get(layer.name, {})
        goes: Tensor | Choice | Gone = mask
        if isinstance(mask, Tensor) and metric is not None and self._update.choose is not None:
            score = kernel(metric, device=layer.weight.device)
            pattern, zeros = self.masking.pattern, int(mask.sum())
            goes = Choice(score, statistics, pattern, zeros, is_local(metric))
        return prune_layer(layer.weight, goes, statistics, self._update, out, self._damping)

    def _count(self) -> int:
        """A new number for the state of the copy's weights, which ends earlier trials."""
        self._state.number += 1
        return self._state.number
