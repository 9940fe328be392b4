"""Prune a model by a recipe: statistics, scores, masks, zeros."""

from __future__ import annotations

import time
from pathlib import Path

from torch import Tensor, nn

from gpprune.progress import Progress, silent
from gpprune.prune.coupled.experts import prune_experts, takes_experts
from gpprune.prune.coupled.gone import Statistics, holds
from gpprune.prune.measure.calibrate import check_tokens
from gpprune.prune.measure.synthetic import Writer
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.streamed.pages import NotStreamed, pages_of
from gpprune.prune.model.structure import check_weights, linear_layers
from gpprune.prune.orders import CORRECTED
from gpprune.prune.recipe import Recipe
from gpprune.prune.report import PruneReport, prune_report
from gpprune.prune.shots import prune_in_shots
from gpprune.prune.zeros import share_of_layers


def prune_model(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    *,
    order: str | None = None,
    keep: Path | None = None,
    dense: Statistics | None = None,
    writer: Writer | None = None,
    progress: Progress = silent,
) -> PruneReport:
    """Prune a model in place.

    How many weights of each layer go is computed on the dense model, before anything is pruned,
    where an allocation that is not uniform or a pattern across the model says so. A recipe of
    several shots has all of it computed again before each, on the model as it is then.

    Args:
        model: a causal language model; embeddings and head are left alone.
        recipe: how to prune.
        calibration: ``[samples, length]`` int64 tokens to measure statistics on.
        order: one of `ORDERS`; left out, the recipe's own. ``"sequential"``: what is measured of
            the activations of each decoder block (X, Y, D) is measured on the output of the
            already pruned blocks before it, as Wanda's and SparseGPT's code does.
            ``"true-sequential"``: the layers of a block that read one tensor are pruned before it
            is measured what the next ones read, as SparseGPT's option of that name.
            ``"corrected"``: the same, and each layer is fitted to bring back a share of what the
            pruning before it has changed, see `gpprune.prune.measure.drift`; it takes a weight
            update. ``"dense"``: all of it on the dense model in one pass. G is the dense model's
            in each (Pruner-Zero). `Measurer.anew` says which a statistic is.
        dense: by layer name, what `gpprune.prune.calibrate` has measured of the model on the same
            text already. It is not measured again if it holds all that the recipe reads, and the
            recipe asks for no synthetic samples.
        writer: who writes the synthetic samples that the recipe asks for, of the same model while
            it is dense and on the same text: several recipes can share one.
        keep: a directory that holds the weights after each shot of a recipe of several, so that
            the same call goes on after the last one that was finished. It is made, and is the
            caller's to remove. None: nothing is kept.
        progress: called as ``progress(label, done, total)``.

    Returns:
        The zeros of every layer and of all matrices of the blocks, and what each shot did.

    Raises:
        UsageError: a bad order, calibration or pattern, `keep` holds another pruning, or the model
            cannot write the synthetic samples that the recipe asks for; nothing has been changed
            then.
        GppruneError: a damaged weight, a layer that no token reached in the first shot, a
            statistic that is not finite, or a metric that gives NaN. Of the last three, the layers
            of the blocks before the named one may be pruned already. A model that cannot be trained
            is refused before; a loss that is not finite as it is trained leaves it pruned.
    """
    order = recipe.in_order(order)
    start = time.perf_counter()
    check_tokens(calibration)
    layers = linear_layers(model)
    check_weights(layers)
    recipe.shape.check_model({name: layer.shape for name, layer in layers.items()})
    written = recipe.synthetic_samples > 0  # `dense` is not of them
    held = None if dense is None or written or not holds(dense, layers, recipe.reads) else dense

    share_of_layers(model, recipe)  # more than there is, is refused now
    pages = pages_of(model)
    if pages is not None:
        check_streamable(recipe, order)
    if takes_experts(recipe):
        removed, reached = prune_experts(model, recipe, calibration, dense=held, progress=progress)
        seconds = time.perf_counter() - start
        return prune_report(model, seconds, experts=reached, removed=removed)
    with quiet_model(model):
        done = prune_in_shots(model, recipe, calibration, order, progress, keep, held, writer)
    if pages is not None:
        pages.settle()
    streamed = None if pages is None else tuple(pages.seconds)
    return prune_report(model, time.perf_counter() - start, *done, streamed)


def check_streamable(recipe: Recipe, order: str | None = None) -> None:
    """See that a recipe can be followed with one decoder block in memory at a time.

    Raises:
        NotStreamed: it reads or changes several at once, or all of them more than once.
    """
    order = recipe.in_order(order)
    reasons = {
        f"{recipe.shots} shots": recipe.shots > 1,
        "training after pruning": recipe.recover > 0,
        f"permuting channels by {recipe.permute}": bool(recipe.permute),
        "synthetic samples": recipe.synthetic_samples > 0,
        f"the order {order!r}": order == CORRECTED,
        f"the pattern {recipe.pattern!r}, whose units go through several layers": bool(
            recipe.shape.units
        ),
        f"the allocation {recipe.allocation!r}, which is learned": recipe.allocator is None,
    }
    for what, true in reasons.items():
        if true:
            raise NotStreamed(f"{what}: not possible for a model that is streamed block by block")
