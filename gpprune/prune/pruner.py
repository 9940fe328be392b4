"""Prune a model by a recipe: statistics, scores, masks, zeros."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError, UsageError
from gpprune.prune.allocate.allocator import recipe_reads, recipe_zeros
from gpprune.prune.measure.statistics import (
    ActivationSums,
    LayerStatistics,
    Progress,
    calibrate,
    check_tokens,
    quiet_model,
)
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer, check_weights, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.select.masks import Pattern, exact_mask, parse_pattern, prune_mask
from gpprune.prune.select.scores import ScoreKernel, layer_scores


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: the layer's name in the model.
        zeros: how many of its weights are zero.
        size: how many weights it has.
    """

    name: str
    zeros: int
    size: int

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.size


@dataclass(frozen=True)
class PruneReport:
    """What became of a model's linear layers.

    Attributes:
        layers: one report a layer, in the model's order.
        seconds: how long pruning took, calibration included.
    """

    layers: tuple[LayerReport, ...]
    seconds: float

    @property
    def zeros(self) -> int:
        """How many weights of the pruned layers are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def size(self) -> int:
        """How many weights the pruned layers have."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The share of zeros in the pruned layers."""
        return self.zeros / self.size

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        layers = [{**asdict(layer), "sparsity": layer.sparsity} for layer in self.layers]
        return {
            "zeros": self.zeros,
            "size": self.size,
            "sparsity": self.sparsity,
            "seconds": self.seconds,
            "layers": layers,
        }


def layer_mask(
    layer: LinearLayer,
    score: ScoreKernel,
    statistics: LayerStatistics | None,
    sparsity: float | None,
    pattern: str | Pattern,
    *,
    zeros: int | None = None,
    weight: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The mask of one layer under a compiled metric.

    Args:
        layer: the layer; its name appears in errors.
        score: the compiled metric.
        statistics: the layer's statistics, see :func:`layer_scores`.
        sparsity: the share to prune.
        pattern: which weights compete.
        zeros: how many weights go, in place of the share.
        weight: the weight to score, ``[out, in]``, in place of the layer's own.
        out: a prepared buffer for the scores.

    Returns:
        A bool tensor ``[out, in]``, True where a weight goes.

    Raises:
        GppruneError: naming the layer, if its scores are NaN.
        UsageError: naming the layer, if the pattern does not fit it.
    """
    scores = layer_scores(score, layer.weight if weight is None else weight, statistics, out)
    shape = parse_pattern(pattern) if isinstance(pattern, str) else pattern
    try:
        if zeros is not None:
            return exact_mask(scores, zeros, shape)
        return prune_mask(scores, sparsity, shape)
    except GppruneError as error:
        raise type(error)(f"in {layer.name!r}: {error}") from error


def prune_model(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    *,
    order: str = "sequential",
    progress: Progress | None = None,
) -> PruneReport:
    """Prune a model in place.

    Args:
        model: a causal language model; embeddings and head are left alone.
        recipe: how to prune.
        calibration: ``[samples, length]`` int64 tokens to measure X, Y, G and D on.
        order: ``"sequential"``: the X, Y and D of each decoder block are measured on the output
            of the already pruned blocks before it, as Wanda's and SparseGPT's code does.
            ``"dense"``: all of them on the dense model in one pass. G is the dense model's
            either way (Pruner-Zero).
        progress: called as ``progress(label, done, total)``.

    An allocation that is not uniform is computed on the dense model, before anything is pruned.

    Returns:
        The zeros of every layer.

    Raises:
        UsageError: a bad order, calibration or pattern; nothing has been changed then.
        GppruneError: a damaged weight, or a metric that gives NaN or a D that cannot be had of a
            layer's inputs; in the last two cases the layers before the named one may be pruned
            already.
    """
    if order not in _ORDERS:
        raise UsageError(f"there is no order {order!r}: choose from {', '.join(_ORDERS)}")
    start = time.perf_counter()
    check_tokens(calibration)
    layers = linear_layers(model)
    check_weights(layers)
    for layer in layers.values():
        recipe.shape.check_layer(repr(layer.name), layer.weight.shape)
    formula = recipe.formula.canonical(recipe.shape.group)
    weights = [layer.weight for layer in layers.values()]
    elements = sum(weight.numel() for weight in weights)
    score = kernel(formula, elements=elements, device=weights[0].device)
    measured = zeros = None
    with quiet_model(model):
        if recipe.allocation != "uniform":
            reads = recipe_reads(recipe)
            if reads:
                gradients, hessians = "G" in reads, "D" in reads
                measured = calibrate(model, calibration, gradients, progress, hessians=hessians)
            zeros = recipe_zeros(model, recipe, calibration, measured or {}, progress)
        job = _Job(model, layers, recipe, score, calibration, progress, measured, zeros)
        with torch.no_grad():
            _ORDERS[order](job)
    reports = tuple(
        LayerReport(
            name,
            layer.weight.numel() - int(torch.count_nonzero(layer.weight)),
            layer.weight.numel(),
        )
        for name, layer in layers.items()
    )
    return PruneReport(reports, time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class _Job:
    """What every order of pruning needs."""

    model: nn.Module
    layers: Mapping[str, LinearLayer]
    recipe: Recipe
    score: ScoreKernel
    tokens: Tensor
    progress: Progress | None
    measured: Mapping[str, LayerStatistics] | None  # of the dense model, for the allocation
    zeros: Mapping[str, int] | None  # of each layer; None: the same share of each

    def prune(self, layer: LinearLayer, statistics: LayerStatistics | None) -> None:
        zeros = None if self.zeros is None else self.zeros[layer.name]
        target, pattern = self.recipe.sparsity, self.recipe.shape
        mask = layer_mask(layer, self.score, statistics, target, pattern, zeros=zeros)
        layer.weight.masked_fill_(mask, 0)

    def report(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress("pruning", done, total)

    def dense_statistics(self, *, hessians: bool) -> dict[str, LayerStatistics]:
        """What one pass over the dense model measures, if the metric reads any of it."""
        if self.measured is not None:
            return dict(self.measured)
        if self.score.terminals <= {"W"}:
            return {}
        gradients = "G" in self.score.terminals
        return calibrate(self.model, self.tokens, gradients, self.progress, hessians=hessians)


def _prune_dense(job: _Job) -> None:
    """Every layer on the statistics of the dense model."""
    statistics = job.dense_statistics(hessians="D" in job.score.terminals)
    for done, (name, layer) in enumerate(job.layers.items(), start=1):
        job.prune(layer, statistics.pop(name, None))
        job.report(done, len(job.layers))


def _prune_sequential(job: _Job) -> None:
    """Each block on the output of the already pruned blocks before it."""
    if not job.score.terminals & {"X", "Y", "D"}:
        _prune_dense(job)  # nothing that is measured changes as blocks are pruned
        return
    dense = job.dense_statistics(hessians=False) if "G" in job.score.terminals else {}
    runner = BlockRunner(job.model, job.tokens, job.progress)
    for index in range(len(runner)):
        block_layers = [layer for layer in job.layers.values() if layer.block == index]
        sums = ActivationSums(block_layers, hessians="D" in job.score.terminals)
        with sums.watching():
            runner.forward(index, keep=False)
        for layer in block_layers:
            before = dense.pop(layer.name, None)
            gradient = before.G if before is not None else None
            job.prune(layer, sums.statistics(layer.name, len(job.tokens), gradient))
        if index + 1 < len(runner):
            runner.forward(index, keep=True)
        job.report(index + 1, len(runner))


_ORDERS: dict[str, Callable[[_Job], None]] = {
    "sequential": _prune_sequential,
    "dense": _prune_dense,
}
