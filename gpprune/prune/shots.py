"""Prune in several shots: measure, prune a part, and measure again on what is left."""

from __future__ import annotations

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gpprune.progress import Progress
from gpprune.prune.kept import Kept, identity_of
from gpprune.prune.measure.drift import originals_of
from gpprune.prune.measure.synthetic import Writer
from gpprune.prune.model.run import next_token_loss
from gpprune.prune.once import Stage, Statistics, prune_once
from gpprune.prune.orders import CORRECTED, goes_by_block
from gpprune.prune.recipe import Recipe
from gpprune.prune.recover.distil import Predictions, distil
from gpprune.prune.report import Shot


def prune_in_shots(
    model: nn.Module,
    recipe: Recipe,
    calibration: Tensor,
    order: str,
    progress: Progress,
    keep: Path | None,
    dense: Statistics | None = None,
    writer: Writer | None = None,
) -> tuple[Shot, ...]:
    """Prune a model in place in the shots that a recipe has.

    Everything is measured again before each shot, on the weights as they are then. What is pruned
    stays pruned, so that the zeros only grow, up to the recipe's number exactly. The order
    ``"corrected"`` makes up for what all shots so far have changed.

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
        What each shot did; nothing for a recipe of one shot and without training.

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
        prune_once(model, recipe, text, order, progress, dense=dense)
        return ()
    kept = None if keep is None else Kept(keep, identity_of(model, recipe, calibration, order))
    shots = [] if kept is None else kept.shots()
    done = kept if shots else None
    left = recipe.parts[len(shots) :]
    # before the weights of a finished shot come back
    with originals_of(model) if left and order == CORRECTED else nullcontext() as originals:
        if done is None:
            written = write(recipe.synthetic_samples * recipe.shots)
        else:
            written = done.written(len(shots))
        texts = [_text(recipe, calibration, written, at) for at in range(len(shots), recipe.shots)]
        trains = recipe.recover and left
        train = _Training(model, texts, len(calibration), progress) if trains else None
        held = {} if done is None else done.restore(model, len(shots))
        for at, (part, text) in enumerate(zip(left, texts, strict=True)):
            start = time.perf_counter()
            again = bool(shots) and written is None  # the text that the shot before ended on
            before = shots[-1].end if again else mean_loss(model, text)
            progress("shots", len(shots), recipe.shots)
            stage = Stage(part, held, originals if shots else None)
            known = None if shots else dense
            found = prune_once(model, recipe, text, order, progress, stage, known)
            held = found.masks
            zeros = sum(int(mask.sum()) for mask in held.values())
            size = sum(mask.numel() for mask in held.values())
            after, recovered = mean_loss(model, text), None
            if train is not None:
                train(at, recipe.recover)
                recovered = mean_loss(model, text)
            seconds = time.perf_counter() - start
            losses = (before, after, found.predicted)
            shots.append(Shot(zeros / size, zeros, *losses, seconds, recovered))
            if kept is not None:
                kept.store(model, held, shots, written)
    progress("shots", len(shots), recipe.shots)
    return tuple(shots)


def _text(recipe: Recipe, given: Tensor, written: Tensor | None, shot: int) -> Tensor:
    """What a shot is calibrated on: the given text and synthetic samples of its own.

    Args:
        recipe: how to prune.
        given: ``[samples, length]``, int64.
        written: the synthetic samples of all shots, shot after shot; None: there are none.
        shot: its place.
    """
    if written is None:
        return given
    count = recipe.synthetic_samples
    return torch.cat([given, written[shot * count : (shot + 1) * count].to(given)])


class _Training:
    """Trains after each of the shots that are left.

    Args:
        model: dense.
        texts: of these shots, each as long as the others.
        given: how many sequences all of them begin with.
        progress: called as ``progress(label, done, total)``.
    """

    def __init__(
        self, model: nn.Module, texts: list[Tensor], given: int, progress: Progress
    ) -> None:
        self._model, self._given, self._progress = model, given, progress
        self._own = len(texts[0]) - given
        whole = [texts[0][:given], *(text[given:] for text in texts)]
        self._dense = Predictions(model, torch.cat(whole), progress)
        # what cannot be trained is refused, or finds no memory, before anything is pruned
        distil(model, self._dense, [0], 1, rate=0.0)

    def __call__(self, at: int, epochs: int) -> None:
        """Train the weights that stay after one of the shots, for so many epochs on its text."""
        first = self._given + at * self._own
        rows = [*range(self._given), *range(first, first + self._own)]
        distil(self._model, self._dense, rows, epochs, progress=self._progress)


@torch.no_grad()
def mean_loss(model: nn.Module, tokens: Tensor) -> float:
    """The mean next-token loss of a model on sequences ``[samples, length]``, in nats a token."""
    tokens = tokens.to(next(model.parameters()).device)
    losses = [float(next_token_loss(model(one[None]).logits, one[None])) for one in tokens]
    return sum(losses) / len(losses)
