"""Prune in several shots: measure, prune a part, and measure again on what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gpprune.progress import Progress
from gpprune.prune.coupled.gone import Statistics
from gpprune.prune.coupled.permutation import Permutation, permute_channels
from gpprune.prune.kept import Kept, identity_of
from gpprune.prune.measure.drift import originals_of
from gpprune.prune.measure.synthetic import Writer
from gpprune.prune.model.coupling.proof import couplings
from gpprune.prune.model.experts.traffic import Reached, expert_tokens
from gpprune.prune.model.run import image_token, next_token_loss
from gpprune.prune.model.structure import linear_layers
from gpprune.prune.once import prune_once
from gpprune.prune.orders import CORRECTED, goes_by_block
from gpprune.prune.recipe import Recipe
from gpprune.prune.recover.aims import Predictions
from gpprune.prune.recover.distil import distil
from gpprune.prune.report import Shot
from gpprune.prune.stage import Outcome, Stage


def prune_in_shots(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    order: str,
    progress: Progress,
    keep: Path | None,
    dense: Statistics | None = None,
    writer: Writer | None = None,
) -> tuple[tuple[Shot, ...], Permutation | None, Reached | None]:
    """Prune a model in place in the shots that a recipe has, its channels permuted if it says so.

    Everything is measured again before each shot, on the weights as they are then. What is pruned
    stays pruned, so that the zeros only grow, up to the recipe's number exactly. The order
    ``"corrected"`` makes up for what all shots so far have changed, or, in a recipe that trains,
    for what the shot itself has: the rest was trained.

    Args:
        model: dense, in evaluation mode.
        recipe: how to prune.
        calibration: ``[samples, length]``, int64.
        order: one of `gpprune.prune.ORDERS`.
        progress: called as ``progress(label, done, total)``.
        keep: a directory for the weights after each shot, see `gpprune.prune.prune_model`.
        dense: for the first shot, see `gpprune.prune.prune_model`.
        writer: of the synthetic samples, see `gpprune.prune.prune_model`.

    Returns:
        What each shot did; nothing for a recipe of one shot and without training. How the channels
        were permuted. And how many tokens of the first shot's text came to each expert, if
        anything of it is read.

    Raises:
        UsageError: `keep` holds another pruning, or the model cannot write synthetic samples.
        GppruneError: it holds one that is damaged, or cannot be written to; so the temporary
            directory.
    """
    write = partial(
        writer or Writer(model, calibration),
        progress=progress,
        by_block=goes_by_block(order, recipe.reads),
    )
    if recipe.shots == 1 and not recipe.recover:
        written = write(recipe.synthetic_samples)
        text = _text(recipe, calibration, written, 0)
        permuted = _permuted(model, recipe, text, dense, progress)
        known = dense if permuted is None else None
        reached, aside = _reached(model, recipe, text, progress)
        prune_once(model, recipe, text, order, progress, dense=known, aside=aside)
        return (), permuted, reached
    kept = None if keep is None else Kept(keep, identity_of(model, recipe, calibration, order))
    shots = [] if kept is None else kept.shots()
    done = kept if shots else None
    left = recipe.parts[len(shots) :]
    # Training is not to be undone: what each layer did in the dense model it no longer has to do.
    mends = order == CORRECTED and not recipe.recover and left
    if done is None:
        written = write(recipe.synthetic_samples * recipe.shots)
        text = _text(recipe, calibration, written, 0)
        permuted = _permuted(model, recipe, text, dense, progress)
    else:
        written, permuted = done.written(len(shots)), done.permutation()
        if permuted is not None:
            permuted.fold(model)
    # before the weights of a finished shot come back
    first = _text(recipe, calibration, written, 0)
    reached, aside = _reached(model, recipe, first, progress)
    with originals_of(model) if mends else nullcontext() as originals:
        last = _text(recipe, calibration, written, recipe.shots - 1)
        train = _training(model, recipe, last, progress) if left else None
        held = {} if done is None else done.restore(model, len(shots))
        coupled = couplings(model) if recipe.shape.units and left else None
        for part in left:
            at = len(shots)
            text = _text(recipe, calibration, written, at)
            again = bool(shots) and written is None  # the text that the shot before ended on
            before = shots[-1].end if again else None
            progress("shots", at, recipe.shots)
            stage = Stage(part, held, originals if shots else None, coupled)
            known = dense if permuted is None and not shots else None
            prune = partial(prune_once, model, recipe, text, order, progress, stage, known, aside)
            shot, held = _shot(model, text, before, prune, train)
            shots.append(shot)
            if kept is not None:
                kept.store(model, held, shots, written, permuted)
    progress("shots", len(shots), recipe.shots)
    return tuple(shots), permuted, reached


def _reached(
    model: nn.Module, recipe: Recipe, text: Tensor, progress: Progress
) -> tuple[Reached | None, Collection[str]]:
    """How many tokens come to each expert of a dense model, and the layers that stay so."""
    if not recipe.reads and recipe.idle_experts != "dense":
        return None, ()
    found = expert_tokens(model, text, recipe.idle_experts, progress)
    return found, () if found is None else found.aside(linear_layers(model))


def _permuted(
    model: nn.Module, recipe: Recipe, text: Tensor, dense: Statistics | None, progress: Progress
) -> Permutation | None:
    """Permute the channels of the dense model where the recipe says so."""
    if not recipe.permute:
        return None
    return permute_channels(model, recipe, text, statistics=dense, progress=progress)


def _shot(
    model: nn.Module,
    text: Tensor,
    before: float | None,
    prune: Callable[[], Outcome],
    train: Callable[[Tensor], object] | None,
) -> tuple[Shot, dict[str, Tensor]]:
    """Prune, then perhaps train; what that did on a text, and the masks.

    Args:
        model: in which that happens.
        text: ``[samples, length]``, int64.
        before: the mean loss of the model on it; None: it is measured.
        prune: prunes the model.
        train: trains it on the text; None: it is not.
    """
    start = time.perf_counter()
    before = mean_loss(model, text) if before is None else before
    found = prune()
    after, recovered = mean_loss(model, text), None
    if train is not None:
        train(text)
        recovered = mean_loss(model, text)
    zeros = sum(int(mask.sum()) for mask in found.masks.values())
    size = sum(mask.numel() for mask in found.masks.values())
    seconds = time.perf_counter() - start
    shot = Shot(zeros / size, zeros, before, after, found.predicted, seconds, recovered)
    return shot, found.masks


def _text(recipe: Recipe, given: Tensor, written: Tensor | None, shot: int) -> Tensor:
    """What a shot is calibrated and trained on: the given text, and all that was written by then.

    What a shot on few sequences has spoiled the next ones do not mend: each has more than the one
    before.

    Args:
        recipe: how to prune.
        given: ``[samples, length]``, int64.
        written: the synthetic samples of all shots, shot after shot; None: there are none.
        shot: its place.
    """
    if written is None:
        return given
    return torch.cat([given, written[: (shot + 1) * recipe.synthetic_samples].to(given)])


def _training(
    model: nn.Module, recipe: Recipe, text: Tensor, progress: Progress
) -> Callable[[Tensor], object] | None:
    """What trains the weights that stay after a shot, on its text; None: nothing does.

    Args:
        model: dense.
        recipe: how to prune.
        text: of the last shot: those of the others are what it begins with.
        progress: called as ``progress(label, done, total)``.
    """
    if not recipe.recover:
        return None
    dense = Predictions(model, text, progress)
    # what cannot be trained is refused, or finds no memory, before anything is pruned
    distil(model, dense, [0], 1, rate=0.0)
    return lambda own: distil(model, dense, range(len(own)), recipe.recover, progress=progress)


@torch.no_grad()
def mean_loss(model: nn.Module, tokens: Tensor) -> float:
    """The mean next-token loss of a model on sequences ``[samples, length]``, in nats a token."""
    tokens = tokens.to(next(model.parameters()).device)
    image = image_token(model)
    losses = [float(next_token_loss(model(one[None]).logits, one[None], image)) for one in tokens]
    return sum(losses) / len(losses)
