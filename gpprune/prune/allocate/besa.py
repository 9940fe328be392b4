"""BESA's learned allocation: each layer's sparsity, trained on the reconstruction of its block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.measure.calibrate import check_tokens
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer, blocks, check_weights, linear_layers
from gpprune.prune.select.lowest.selection import has_nan
from gpprune.prune.select.pattern import check_sparsity, pruned_count

_STEPS = 100  # the candidate sparsities are p_d = 0.00, 0.01, ..., 1.00

# Ours, where the paper's code takes a step for each of hundreds of sequences, with an optimiser
# that finds its own rate: a calibration here may have eight. The penalty is a multiple of the
# block's first reconstruction error, since that differs a hundredfold from block to block.
_RATE = 0.1
_PENALTY = 200.0


def besa_sparsities(
    model: nn.Module,
    scores: Callable[[LinearLayer], Tensor],
    tokens: Tensor,
    target: float,
    *,
    epochs: int = 1,
    progress: Progress = silent,
) -> dict[str, float]:
    """Learn each linear layer's sparsity from how well its pruned block reproduces the dense one.

    BESA (Xu et al. 2024, arXiv 2402.16880), with one set of candidates a layer. Block by block,
    on the hidden states X that the already pruned blocks before it have made, it minimises

        ||F(W, X) - F(M * W, X)||² / ||F(W, X)||² + lambda (alpha - target)²

    over logits of the candidate sparsities p_d of every layer. With beta their softmax, a layer's
    sparsity is sum_d beta_d p_d; alpha is its mean over the block's layers, weighted by their
    sizes. M prunes the lowest scores of each output row, and the gradient passes it straight
    through to the keep-probabilities, see :func:`keep_probability`. A step is one sequence.

    Three choices are ours. The paper starts from equal probabilities, which mean a sparsity of
    0.5: here these are tilted, by a slope times p_d added to the logits, so that every layer
    starts at the target. Adam's rate is 0.1, and lambda 200 times the block's first error. What
    the penalty leaves between alpha and the target, some hundredths, one more tilt of all the
    block's layers takes away.

    Args:
        model: a causal language model; nothing of it is changed, whatever happens.
        scores: the scores of a layer's weights, ``[out, in]``; the lower go first. It is called
            once for each layer, in the model's order, when that layer's block is reached.
        tokens: calibration tokens, ``[samples, length]``, int64.
        target: every block's share of pruned weights, in ``[0, 1)``.
        epochs: how often the sequences are gone through.
        progress: called as ``progress("learning the allocation", done, blocks)``, after the
            label "reading the calibration text" has been.

    Returns:
        Each layer's sparsity in ``[0, 1)`` by the layer's name, in the model's order. Their mean
        over a block, weighted by size, is the target.

    Raises:
        UsageError: a bad target, number of epochs or tokens, or scores of another shape.
        GppruneError: a damaged weight, NaN among a layer's scores or in a block's output, or
            blocks that do not form a chain.
    """
    check_tokens(tokens)
    check_sparsity(target)
    if epochs < 1:
        raise UsageError(f"nothing is learned in {epochs} epochs: give at least 1")
    layers = linear_layers(model)
    check_weights(layers)
    if target == 0.0:
        return dict.fromkeys(layers, 0.0)  # no softmax gives it, and there is nothing to learn
    learned: dict[str, float] = {}
    with quiet_model(model):
        runner = BlockRunner(model, tokens, progress)
        for index, block in enumerate(blocks(model)):
            parts = [
                _LayerSparsity(layer, scores(layer))
                for layer in layers.values()
                if layer.block == index
            ]
            training = _BlockTraining(runner, index, block, parts, target)
            for _ in range(epochs):
                for sequence in range(len(tokens)):
                    training.step(sequence)
            training.finish()
            learned |= {part.layer.name: part.sparsity for part in parts}
            progress("learning the allocation", index + 1, len(runner))
    return learned


def keep_probability(beta: Tensor, size: int) -> Tensor:
    """The probability that a weight stays, by its rank in its output row (BESA).

    The weight at rank k, 0 for the least important, goes under every candidate sparsity p_d that
    prunes more than k of the row: it stays with 1 minus the sum of beta_d over
    ``floor(size * p_d) > k``.

    Args:
        beta: ``[101]``, the probabilities of the candidates 0.00, 0.01, ..., 1.00.
        size: the number of input features, so of ranks.

    Returns:
        ``[size]``, rising with the rank; differentiable in ``beta``.
    """
    counts = torch.arange(_STEPS + 1, device=beta.device) * size // _STEPS
    ranks = torch.arange(size, device=beta.device)
    # The counts rise, so the candidates that leave rank k alone are the first of them: as many
    # as are at most k, and one at least, since the first count is 0.
    last = torch.searchsorted(counts, ranks, right=True) - 1
    return beta.cumsum(0)[last]


def _candidates(device: torch.device) -> Tensor:
    """The candidate sparsities, ``[101]``, float64."""
    return torch.arange(_STEPS + 1, dtype=torch.float64, device=device) / _STEPS


class _LayerSparsity:
    """One layer's learned sparsity: logits over the candidates, and the mask they make.

    Args:
        layer: the layer.
        scores: ``[out, in]``.
    """

    def __init__(self, layer: LinearLayer, scores: Tensor) -> None:
        if scores.shape != layer.weight.shape:
            raise UsageError(
                f"the scores of {layer.name!r} have shape {list(scores.shape)}: give "
                f"[out, in], here {list(layer.weight.shape)}"
            )
        if has_nan(scores):
            raise GppruneError(
                f"the scores of {layer.name!r} hold NaN, so they have no order: change the formula"
            )
        self.layer = layer
        self.size = layer.weight.numel()
        # From rank to input feature, in each row; ties go as in every mask.
        self._order = torch.sort(scores.detach(), dim=1, stable=True).indices
        self._candidates = _candidates(scores.device)
        self.logits = torch.zeros_like(self._candidates, requires_grad=True)

    def mean(self) -> Tensor:
        """The sparsity, sum_d beta_d p_d: differentiable, a float64 scalar."""
        return self.logits.softmax(0) @ self._candidates

    @property
    def sparsity(self) -> float:
        """The sparsity as a number, below 1 even where rounding says otherwise."""
        return min(self.mean().item(), math.nextafter(1.0, 0.0))

    def masked_weight(self) -> Tensor:
        """The weight times its mask, laid out as it is stored.

        The mask is exactly 0 or 1; its gradient is the keep-probability's (straight through).
        """
        weight = self.layer.weight
        keep = keep_probability(self.logits.softmax(0), self.layer.in_features)
        pruned = pruned_count(self.sparsity, self.layer.in_features)
        hard = torch.arange(self.layer.in_features, device=keep.device) >= pruned
        by_rank = (hard + (keep - keep.detach())).to(weight.dtype)
        # Scattered by rank: going back, this gathers, which is far faster than adding up.
        mask = torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device)
        mask = mask.scatter(1, self._order, by_rank.expand(weight.shape))
        return self.layer.oriented(weight * mask)


class _BlockTraining:
    """The training of one block's sparsities.

    Args:
        runner: holds the states that the block reads.
        index: the block's place in the model.
        block: the block.
        parts: its layers' sparsities.
        target: what their mean is to be.
    """

    def __init__(
        self,
        runner: BlockRunner,
        index: int,
        block: nn.Module,
        parts: Sequence[_LayerSparsity],
        target: float,
    ) -> None:
        self._runner = runner
        self._index = index
        self._parts = parts
        self._target = target
        _tilt(parts, target)
        self._optimiser = torch.optim.Adam([part.logits for part in parts], lr=_RATE)
        self._penalty: float | None = None
        # Detached, so that no gradient reaches the model's parameters.
        self._dense = {name: p.detach() for name, p in block.named_parameters()}
        names = {id(p): name for name, p in block.named_parameters()}
        self._names = [names[id(part.layer.parameter)] for part in parts]

    def _pruned(self) -> dict[str, Tensor]:
        """The block's parameters by their names in it, the layers' weights masked."""
        own: dict[str, list[_LayerSparsity]] = {}
        for name, part in zip(self._names, self._parts, strict=True):
            own.setdefault(name, []).append(part)
        return self._dense | {name: _masked(parts) for name, parts in own.items()}

    def step(self, sequence: int) -> None:
        """Take one step of the optimiser on one sequence's states."""
        with torch.no_grad():
            dense = self._runner.output(self._index, sequence)
        with torch.enable_grad():
            pruned = self._runner.output(self._index, sequence, self._pruned())
            error = _relative_error(pruned, dense)
            if self._penalty is None:
                self._penalty = _PENALTY * self._finite(error)
            gap = _mean_sparsity(self._parts) - self._target
            self._optimiser.zero_grad()
            (error + self._penalty * gap.square()).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _finite(self, error: Tensor) -> float:
        value = error.item()
        if not math.isfinite(value):
            raise GppruneError(
                f"the reconstruction error of block {self._index} is {value}: the checkpoint is "
                "damaged, or its numbers overflow the dtype it was loaded in"
            )
        return value

    def finish(self) -> None:
        """Bring the mean sparsity to the target, and send the states through the pruned block."""
        _tilt(self._parts, self._target)
        if self._index + 1 < len(self._runner):
            with torch.no_grad():
                weights = self._pruned()
            self._runner.forward(self._index, keep=True, weights=weights)


def _masked(parts: Sequence[_LayerSparsity]) -> Tensor:
    """The masked parameter of a layer, or of all experts that share one."""
    weights = [part.masked_weight() for part in parts]
    return torch.stack(weights) if parts[0].layer.stacked else weights[0]


def _mean_sparsity(parts: Sequence[_LayerSparsity]) -> Tensor:
    """The mean sparsity of layers, weighted by their sizes: differentiable."""
    total = torch.stack([part.mean() * part.size for part in parts]).sum()
    return total / sum(part.size for part in parts)


@torch.no_grad()
def _tilt(parts: Sequence[_LayerSparsity], target: float) -> None:
    """Add one slope times p_d to all logits, so that the layers' mean sparsity is the target.

    Of all distributions with that mean, this gives the closest in Kullback-Leibler divergence.
    """
    before = [part.logits.clone() for part in parts]
    candidates = _candidates(before[0].device)

    def mean_under(slope: float) -> float:
        for part, logits in zip(parts, before, strict=True):
            part.logits.copy_(logits + slope * candidates)
        return _mean_sparsity(parts).item()

    low, high = -1e5, 1e5  # the first makes every sparsity 0, the second 1
    for _ in range(70):
        middle = (low + high) / 2
        # A hair more than the target: half of 64 weights are not to come out as 31.
        if mean_under(middle) < target + 1e-9:
            low = middle
        else:
            high = middle


def _relative_error(output: Tensor, dense: Tensor) -> Tensor:
    """The mean squared difference over the dense output's mean square."""
    scale = dense.float().square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return (output.float() - dense.float()).square().mean() / scale
