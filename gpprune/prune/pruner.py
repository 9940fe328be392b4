"""Prune a model by a recipe: statistics, scores, masks, zeros."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.measure.accumulator import Extent
from gpprune.prune.measure.calibrate import calibrate, check_tokens
from gpprune.prune.measure.measuring import Measuring, measurers
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer, check_weights, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.report import PruneReport, prune_report
from gpprune.prune.select.scores import ScoreKernel
from gpprune.prune.step import layer_mask, prune_layer
from gpprune.prune.update.table import UPDATES
from gpprune.prune.zeros import recipe_kernel, recipe_zeros


def prune_model(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    *,
    order: str = "sequential",
    progress: Progress = silent,
) -> PruneReport:
    """Prune a model in place.

    How many weights of each layer go is computed on the dense model, before anything is pruned,
    where an allocation that is not uniform or a pattern across the model says so.

    Args:
        model: a causal language model; embeddings and head are left alone.
        recipe: how to prune.
        calibration: ``[samples, length]`` int64 tokens to measure statistics on.
        order: ``"sequential"``: what is measured of the activations of each decoder block (X, Y,
            D) is measured on the output of the already pruned blocks before it, as Wanda's and
            SparseGPT's code does. ``"dense"``: all of it on the dense model in one pass. G is the
            dense model's either way (Pruner-Zero). `Measurer.anew` says which a statistic is.
        progress: called as ``progress(label, done, total)``.

    Returns:
        The zeros of every layer and of all matrices of the blocks.

    Raises:
        UsageError: a bad order, calibration or pattern; nothing has been changed then.
        GppruneError: a damaged weight, a layer that no token reached, a statistic that is not
            finite, or a metric that gives NaN. Of the last three, the layers of the blocks before
            the named one may be pruned already.
    """
    if order not in _ORDERS:
        raise UsageError(f"there is no order {order!r}: choose from {', '.join(_ORDERS)}")
    start = time.perf_counter()
    check_tokens(calibration)
    layers = linear_layers(model)
    check_weights(layers)
    for layer in layers.values():
        recipe.shape.check_layer(repr(layer.name), layer.weight.shape)
    measured = zeros = None
    with quiet_model(model):
        if recipe.allocation != "uniform" or recipe.shape.across:
            if recipe.reads:
                measured = calibrate(model, calibration, recipe.reads, progress=progress)
            zeros = recipe_zeros(model, recipe, calibration, measured or {}, progress)
        score = recipe_kernel(recipe, layers)
        job = _Job(model, layers, recipe, score, calibration, progress, measured, zeros)
        with torch.no_grad():
            _ORDERS[order](job)
    return prune_report(model, time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class _Job:
    """What every order of pruning needs."""

    model: nn.Module
    layers: Mapping[str, LinearLayer]
    recipe: Recipe
    score: ScoreKernel
    tokens: Tensor
    progress: Progress
    measured: Mapping[str, Mapping[str, Tensor]] | None  # of the dense model, for the zeros
    zeros: Mapping[str, int] | None  # of each layer; None: the same share of each

    def prune(self, layer: LinearLayer, statistics: Mapping[str, Tensor]) -> None:
        zeros = None if self.zeros is None else self.zeros[layer.name]
        target, pattern = self.recipe.sparsity, self.recipe.shape
        mask = layer_mask(layer, self.score, statistics, target, pattern, zeros=zeros)
        weight = layer.weight
        try:
            prune_layer(weight, mask, statistics, self.recipe.update, out=weight)
        except GppruneError as error:
            raise type(error)(f"in {layer.name!r}: {error}") from error

    def report(self, done: int, total: int) -> None:
        self.progress("pruning", done, total)

    @property
    def reads(self) -> list[str]:
        """The statistics that scoring and updating a layer take."""
        return sorted(self.score.terminals - {"W"} | UPDATES.find(self.recipe.update).reads)

    def dense(self, names: Iterable[str]) -> dict[str, Mapping[str, Tensor]]:
        """These statistics of the dense model, by layer name."""
        if self.measured is not None:
            return dict(self.measured)
        return calibrate(self.model, self.tokens, names, progress=self.progress)


def _prune_dense(job: _Job) -> None:
    """Every layer on the statistics of the dense model."""
    statistics = job.dense(job.reads)
    for done, (name, layer) in enumerate(job.layers.items(), start=1):
        job.prune(layer, statistics.pop(name))
        job.report(done, len(job.layers))


def _prune_sequential(job: _Job) -> None:
    """Each block on the output of the already pruned blocks before it."""
    anew = [measurer.name for measurer in measurers(job.reads) if measurer.anew]
    if not anew:
        _prune_dense(job)  # nothing that is measured changes as blocks are pruned
        return
    dense = job.dense(set(job.reads) - set(anew))
    runner = BlockRunner(job.model, job.tokens, job.progress)
    for index in range(len(runner)):
        block_layers = {n: layer for n, layer in job.layers.items() if layer.block == index}
        measuring = Measuring(block_layers, anew)
        with measuring.watching(job.model):
            runner.forward(index, keep=False)
        measuring.check_reached()
        for name, layer in block_layers.items():
            found = measuring.statistics(name, Extent(*job.tokens.shape))
            job.prune(layer, {**dense.pop(name), **found})
        if index + 1 < len(runner):
            runner.forward(index, keep=True)
        job.report(index + 1, len(runner))


_ORDERS: dict[str, Callable[[_Job], None]] = {
    "sequential": _prune_sequential,
    "dense": _prune_dense,
}
