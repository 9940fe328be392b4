"""Train what is left of a pruned model; what is 0 stays 0.

LLM Surgeon corrects between its shots (van der Ouderaa et al. 2024, arXiv 2312.17244) by low-rank
adapters (Hu et al. 2022, arXiv 2106.09685). Here either each weight that stays is trained, or
adapters are, whose product is masked as the model runs, so that merging them brings no weight back.
The aim is what the dense model predicts (Hinton et al. 2015, arXiv 1503.02531), since a whole
distribution says more than the one token that comes next, or the text itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.run import quiet_model
from gpprune.prune.recover.aims import Aim
from gpprune.prune.recover.saved import Saved
from gpprune.prune.recover.trained import Adapters, Trained, all_weights, low_rank

RATE = 1e-4  # Adam's, at its highest, for weights
ADAPTER_RATE = 1e-3  # for adapters, whose product starts at 0
BETAS = (0.9, 0.99)
_BATCH = 2  # sequences
_WARM = 0.1  # of all steps, in which the rate rises; then it falls to 0 as a cosine


def distil(
    model: nn.Module,
    aim: Aim,
    rows: Sequence[int],
    epochs: int,
    *,
    rate: float | None = None,
    adapters: Adapters | None = None,
    saved: Saved | None = None,
    progress: Progress = silent,
) -> list[float]:
    """Train a pruned model's linear layers in place.

    What is 0 stays 0, and what is not a linear layer of a block stays as it is. Adam takes a step
    each two sequences; the weights of a model of less than float32 are kept in float32 until the
    end. Beside the model are the gradients, Adam's two moments and a byte a weight; of adapters
    only their own, and a byte a weight.

    Args:
        model: pruned.
        aim: what it is trained towards, such as `Predictions` of the dense model.
        rows: the sequences to train on, by their places in the text of the aim.
        epochs: how often each is read.
        rate: the highest learning rate: it rises over a tenth of the steps, and falls to 0. Left
            out, `RATE`, or `ADAPTER_RATE`.
        adapters: what is trained in place of the weights, and merged in the end.
        saved: keeps what has been trained after each step, and goes on from there.
        progress: called as ``progress("recovering", done, total)``, in steps.

    Returns:
        The mean loss of each epoch while it was trained, in nats a token.

    Raises:
        UsageError: there are no sequences, or the adapters have no layers.
        GppruneError: the loss, a gradient or a weight is not finite, or the model writes over what
            its gradients need; the weights are those after the step before, or no longer of use.
    """
    if not rows:
        raise UsageError("there is no text to train on: give at least one sequence")
    rate = check_rate(rate, adapters)
    each = math.ceil(len(rows) / _BATCH)
    draw = torch.Generator().manual_seed(0)
    if adapters is not None:
        # RWKV rescales its weights as it first runs, which it could not do to those made anew
        with quiet_model(model), torch.no_grad():
            next(iter(aim.losses(model, rows[:1])))
    making = all_weights(model) if adapters is None else low_rank(model, adapters)
    with quiet_model(model), making as trained:
        adam = torch.optim.Adam(trained.tensors, betas=BETAS, foreach=False)  # else a copy more
        losses = [] if saved is None else saved.restore(adam, trained)
        for epoch in range(epochs):
            mixed = [rows[at] for at in torch.randperm(len(rows), generator=draw).tolist()]
            for at in range(each):
                done = epoch * each + at
                if done < len(losses):
                    continue
                batch = mixed[at * _BATCH : (at + 1) * _BATCH]
                with torch.enable_grad():
                    losses.append(_learn(model, aim, batch))
                adam.param_groups[0]["lr"] = rate * share_of_rate(done, epochs * each)
                take_step(adam, trained, losses[-1])
                if saved is not None:
                    saved.store(adam, trained, losses)
                progress("recovering", done + 1, epochs * each)
    return [_mean(losses[first : first + each], len(rows)) for first in range(0, len(losses), each)]


def check_rate(rate: float | None, adapters: Adapters | None) -> float:
    """The learning rate that is meant.

    Raises:
        UsageError: it lies outside [0, 1].
    """
    if rate is None:
        return RATE if adapters is None else ADAPTER_RATE
    if not 0 <= rate <= 1:
        raise UsageError(f"the learning rate {rate} lies outside [0, 1]: give one such as {RATE:g}")
    return rate


def _mean(losses: Sequence[float], count: int) -> float:
    """Over the sequences of an epoch, of the means of its batches."""
    sizes = [min(_BATCH, count - at * _BATCH) for at in range(len(losses))]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / count


def share_of_rate(done: int, steps: int) -> float:
    """The share of the highest rate that the next step takes, after `done` of so many."""
    rising = min(1.0, (done + 1) / (_WARM * steps))
    return rising * (1 + math.cos(math.pi * done / steps)) / 2


def _learn(model: nn.Module, aim: Aim, batch: Sequence[int]) -> float:
    """Add up the gradients of a batch's mean loss; gives that loss."""
    total = 0.0
    for row in batch:
        with parametrize.cached():  # each weight is made of its adapters once a sequence
            (loss,) = aim.losses(model, [row])
            total += _checked(loss.item())
            with gradients_that_flow(model):
                (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
    return total / len(batch)


@contextmanager
def gradients_that_flow(model: nn.Module) -> Iterator[None]:
    """Say of a model through which no gradients flow back that it cannot be trained."""
    try:
        yield
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        raise GppruneError(
            f"{type(model).__name__} writes over what its gradients need, so it cannot be "
            "trained: prune it without `recover`"
        ) from error


def _damaged(what: str) -> GppruneError:
    return GppruneError(
        f"{what} as the pruned model recovers: its predictions are damaged; take a lower sparsity "
        "or a weight update, or prune it without `recover`"
    )


def _checked(loss: float) -> float:
    if not math.isfinite(loss):
        raise _damaged(f"the loss is {loss}")
    return loss


def take_step(adam: torch.optim.Adam, trained: Trained, loss: float) -> None:
    """One step on what is trained, written into the model.

    Args:
        adam: of its tensors.
        trained: what a backward pass has left gradients of.
        loss: that the pass went back from.

    Raises:
        GppruneError: the loss, a gradient or a weight is not finite.
    """
    _checked(loss)
    gradients: list[Tensor] = trained.gradients()
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise _damaged("a gradient is not finite")
    trained.take(gradients)
    del gradients
    adam.step()
    if not all(bool(one.isfinite().all()) for one in trained.tensors):
        raise _damaged("a weight is not finite")
    adam.zero_grad()  # or the next ones would be a second copy beside these
    trained.write()
