"""Train each block of a pruned model to write what the dense model's does, one after another.

No gradient goes through the model, so that only one block is trained at a time (as BRECQ
reconstructs blocks of quantised models, Li et al. 2021, arXiv 2102.05426). A block reads what the
blocks before it hand on, trained by then, and is to write what the dense model does, so that each
makes up for those before it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.recorder import NotAChain
from gpprune.prune.model.run import frozen, quiet_model
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recover.distil import BETAS, gradients_that_flow, share_of_rate, take_step
from gpprune.prune.recover.saved import SavedBlocks
from gpprune.prune.recover.trained import all_weights

BLOCK_RATE = 3e-3  # Adam's, at its highest


def reconstruct(
    model: nn.Module,
    dense: nn.Module,
    tokens: Tensor,
    epochs: int,
    *,
    rate: float = BLOCK_RATE,
    saved: SavedBlocks | None = None,
    progress: Progress = silent,
) -> list[float]:
    """Train a pruned model's linear layers in place, block by block; what is 0 stays 0.

    The loss of a block is the square of what its output differs from the dense model's hidden
    states, as a share of their square, token by token: the square of one token a sequence is up to
    28,000 times the median in SmolLM2. Adam takes a step each sequence. Beside both models are the
    hidden states of the text in each, and gradients and moments of one block.

    Args:
        model: pruned.
        dense: before it was pruned.
        tokens: ``[samples, length]``, int64.
        epochs: how often each block reads all of it.
        rate: the highest learning rate: it rises over a tenth of a block's steps, and falls to 0.
        saved: keeps each block that is done, and goes on after the last.
        progress: called as ``progress("recovering", done, total)``, in steps.

    Returns:
        The mean loss of each epoch over all blocks.

    Raises:
        UsageError: there is no text, or the models have other blocks.
        GppruneError: the blocks are no plain chain; or a loss, a gradient or a weight is not
            finite: the blocks before it are trained then.
    """
    if not len(tokens):
        raise UsageError("there is no text to train on: give at least one sequence")
    layers = linear_layers(model).values()
    with quiet_model(model), quiet_model(dense), frozen(model), frozen(dense):
        try:
            ours, theirs = BlockRunner(model, tokens, progress), BlockRunner(dense, tokens)
        except NotAChain as error:
            raise GppruneError(
                f"{type(model).__name__} cannot be trained block by block, since its blocks are no "
                "plain chain: recover it by another loss, such as kl"
            ) from error
        if len(ours) != len(theirs):
            raise UsageError(
                f"the dense model has {len(theirs)} blocks and the pruned one {len(ours)}: name "
                "the model that it was pruned from"
            )
        widths = [runner.state(0).shape[-1] for runner in (ours, theirs)]
        if widths[0] != widths[1]:
            raise UsageError(
                f"the hidden states of the dense model are {widths[1]} wide and those of the "
                f"pruned one {widths[0]}: name the model that it was pruned from"
            )
        losses, each = [], epochs * len(tokens)
        for index in range(len(ours)):
            theirs.forward(index, keep=True)
            own = [layer for layer in layers if layer.block == index]
            found = None if saved is None else saved.restore(index, own)
            if found is None:
                found = _mend(model, ours, theirs, index, own, epochs, rate, progress)
                if saved is not None:
                    saved.store(index, own, found)
            losses.append(found)
            ours.forward(index, keep=True)
            progress("recovering", (index + 1) * each, len(ours) * each)
    return [sum(epoch) / len(losses) for epoch in zip(*losses, strict=True)]


def _mend(
    model: nn.Module,
    ours: BlockRunner,
    theirs: BlockRunner,
    index: int,
    layers: Sequence[LinearLayer],
    epochs: int,
    rate: float,
    progress: Progress,
) -> list[float]:
    """Train one block; gives the mean loss of each epoch."""
    draw = torch.Generator().manual_seed(0)
    count, losses = ours.sequences, list[float]()
    each = epochs * count
    with all_weights(model, layers) as trained:
        adam = torch.optim.Adam(trained.tensors, betas=BETAS, foreach=False)
        for _ in range(epochs):
            for place in torch.randperm(count, generator=draw).tolist():
                with torch.enable_grad():
                    loss = _error(ours.output(index, place), theirs.state(place))
                    with gradients_that_flow(model):
                        loss.backward()  # type: ignore[no-untyped-call]
                adam.param_groups[0]["lr"] = rate * share_of_rate(len(losses), each)
                take_step(adam, trained, loss.item())
                losses.append(loss.item())
                progress("recovering", index * each + len(losses), len(ours) * each)
    return [sum(losses[at : at + count]) / count for at in range(0, each, count)]


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    """The squared error as a share of the square, the mean over tokens."""
    found, wanted = found.float(), wanted.float()
    size = wanted.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found - wanted).square().mean(-1) / size).mean()
