"""How good a formula is: the losses of a model that was pruned by it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gpprune.compile import Kernel, behaviour, kernel
from gpprune.errors import GppruneError, Unfit
from gpprune.evals.perplexity import Judgement, WindowLoss, check_windows
from gpprune.primitives import Formula
from gpprune.prune import (
    LinearLayer,
    check_weights,
    layer_scores,
    linear_layers,
    parse_pattern,
    prune_layer,
    prune_mask,
)

Trial = Callable[[int, int], list[float]]


class Fitness(ABC):
    """A copy of a model that formulas prune, one after another, and that is judged on windows.

    It has what a search asks for (`cases`, `prepare`), one case a window of text; a case's loss
    is the window's mean negative log-likelihood in nats a token. One-shot statistics stand in for
    Wanda's sequential order: on SmolLM2-135M the two differ by 1 % of the perplexity, and they
    are measured once for all candidates.

    The model that is given is only read. Weights are scored as it holds them (float32 is right),
    and masks are written into a copy in the dtype that is judged in.
    """

    def __init__(
        self,
        model: nn.Module,
        statistics: Mapping[str, Mapping[str, Tensor]],
        windows: Tensor,
        *,
        sparsity: float | None,
        pattern: str = "row",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Make the copy that is pruned.

        Args:
            model: the dense causal language model.
            statistics: by layer name, as `gpprune.prune.calibrate` measures them; a formula that
                reads one that is missing is a UsageError.
            windows: `[cases, length]`, int64: what is judged on.
            sparsity: the share of weights to prune; None where the pattern implies it.
            pattern: which weights compete, see `gpprune.prune.prune_mask`.
            dtype: what to judge in, see `gpprune.evals.compute_dtype`; None: as the model.

        Raises:
            UsageError: the windows, the sparsity or the pattern are impossible, or the pattern
                does not fit a layer.
            GppruneError: the model has no linear layers in blocks, or a damaged weight.
        """
        check_windows(windows)
        self._dense = linear_layers(model)
        check_weights(self._dense)
        self._statistics = statistics
        self._windows = windows
        self._pattern = parse_pattern(pattern)
        self._sparsity = self._pattern.target(sparsity)
        for layer in self._dense.values():
            self._pattern.check_layer(repr(layer.name), layer.weight.shape)
        weights = [layer.weight for layer in self._dense.values()]
        self._elements = sum(weight.numel() for weight in weights)
        self._device = weights[0].device
        self._model = _copy_as(model, dtype)
        self._pruned = linear_layers(self._model)
        self._loss = WindowLoss(self._model)
        largest = max(weight.numel() for weight in weights)
        self._buffer = torch.empty(largest, dtype=torch.float32, device=self._device)
        self._prepared = [0]  # shared by all that prune this copy

    @abstractmethod
    def _prune(self, formula: Formula) -> None:
        """Write the dense weights into the copy, less those that the formula prunes."""

    @property
    def cases(self) -> int:
        """How many windows there are."""
        return len(self._windows)

    def fingerprint(self, formula: Formula) -> str | None:
        """Text that is the same for formulas that prune alike, where telling takes no evaluation.

        None if it cannot be told.

        Raises:
            Unfit: as `prepare`.
        """
        return None

    @property
    def model(self) -> nn.Module:
        """The copy that is pruned and judged: as the last trial or `restore` left it."""
        return self._model

    def prepare(self, formula: Formula) -> Trial:
        """Prune the copy by a formula.

        Args:
            formula: in whatever canonical form the search keeps.

        Returns:
            `trial(start, stop)`, the losses of these windows. It is good until the next `prepare`
            or `restore`, and a GppruneError afterwards.

        Raises:
            Unfit: the formula cannot be pruned by: it reads nothing, gives a layer scores that are
                NaN or all the same, or a unit a sparsity that is not finite.
            UsageError: it reads a statistic that was not measured.
        """
        prepared = self._count()
        self._prune(formula)
        return self._trial(formula, prepared)

    def _trial(self, formula: Formula, prepared: int) -> Trial:
        def trial(start: int, stop: int) -> list[float]:
            self._check(formula, prepared)
            return self._losses(start, stop)

        return trial

    def _check(self, formula: Formula, prepared: int) -> None:
        """See that a trial is still good."""
        if prepared != self._prepared[0]:
            raise GppruneError(
                f"the model has been pruned by another formula since {formula.text!r} was "
                "prepared: prepare it again"
            )

    def judge(self, formula: Formula, *texts: Tensor) -> list[Judgement]:
        """Prune the copy once and judge it on windows that need not be those of the fitness.

        Args:
            formula: as for `prepare`.
            *texts: each `[windows, length]`, int64.

        Returns:
            One judgement a text.
        """
        self._count()
        self._prune(formula)
        return [
            Judgement(torch.tensor([self._loss(window) for window in text], dtype=torch.float64))
            for text in texts
        ]

    def dense_losses(self) -> list[float]:
        """The loss of each window under the dense model; ends the last trial."""
        self.restore()
        return self._losses(0, self.cases)

    def restore(self) -> None:
        """Put the dense weights back into the copy; ends the last trial."""
        self._count()
        for name, layer in self._dense.items():
            self._pruned[name].write(layer.weight)

    def _count(self) -> int:
        """A new number for the state of the copy's weights, which ends earlier trials."""
        self._prepared[0] += 1
        return self._prepared[0]

    def _losses(self, start: int, stop: int) -> list[float]:
        return [self._loss(window) for window in self._windows[start:stop]]

    def _order(self, metric: Formula) -> str | None:
        """What the order in which a metric puts weights looks like, where masks follow from it."""
        group = self._pattern.group
        return None if group is None else behaviour(metric, group)

    def _write_layer(self, layer: LinearLayer, mask: Tensor) -> None:
        """Prune a layer by a mask, bool `[out, in]`, True where a weight goes, into the copy."""
        prune_layer(layer.weight, mask, {}, "none", out=self._pruned[layer.name].weight)

    def _compiled(self, metric: Formula) -> Kernel:
        """A metric's kernel.

        Raises:
            Unfit: it reads nothing.
        """
        score = kernel(metric, elements=self._elements, device=self._device)
        if not score.terminals:
            raise Unfit("no terminal: the formula is a constant")
        return score

    def _scores(self, layer: LinearLayer, score: Kernel) -> Tensor:
        """A layer's scores, float32 `[out, in]`, good until those of the next layer.

        Raises:
            Unfit: they are NaN or all the same.
        """
        weight = layer.weight
        buffer = self._buffer[: weight.numel()].view(weight.shape)
        scores = layer_scores(score, weight, self._statistics.get(layer.name), buffer)
        lowest, highest = torch.aminmax(scores)
        if torch.isnan(lowest) or torch.isnan(highest):
            raise Unfit(f"NaN among the scores of {layer.name}")
        if lowest == highest:
            raise Unfit(f"all scores of {layer.name} are {float(lowest):.4g}")
        return scores


class MetricFitness(Fitness):
    """Judges metrics: every layer is pruned to the same sparsity by the metric's scores."""

    def fingerprint(self, formula: Formula) -> str | None:
        """The order in which it puts a fixed probe's weights, see `gpprune.compile.behaviour`."""
        return self._order(formula)

    def _prune(self, formula: Formula) -> None:
        score = self._compiled(formula)
        for layer in self._dense.values():
            scores = self._scores(layer, score)
            self._write_layer(layer, prune_mask(scores, self._sparsity, self._pattern))


def _copy_as(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a model with its floating-point parameters in `dtype`, without gradients.

    Buffers keep their dtype, as when transformers loads a model in `dtype`: rotary frequencies
    in bfloat16 would move every position. Parameters are cast one by one into the copy, so that
    no second copy in the old dtype ever exists; tied ones stay tied.
    """
    casts: dict[int, object] = {
        id(parameter): nn.Parameter(
            parameter.detach().to(
                dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype,
                copy=True,
            ),
            requires_grad=False,
        )
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, casts).eval()
