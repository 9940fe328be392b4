"""Measure statistics of a model's linear layers on calibration text."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.measure.measuring import Measuring
from gpprune.prune.model.run import body, next_token_loss, quiet_model
from gpprune.prune.model.structure import check_weights, linear_layers


def check_tokens(tokens: Tensor) -> None:
    """See that calibration tokens are sequences with something to predict.

    Args:
        tokens: ``[samples, length]``, int64.

    Raises:
        UsageError: they are empty or of another shape or kind.
    """
    if tokens.ndim != 2 or tokens.dtype != torch.int64:
        raise UsageError(
            f"calibration tokens are {tokens.dtype} of shape {list(tokens.shape)}: "
            "give int64 [samples, length]"
        )
    if tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise UsageError(
            f"there is nothing to calibrate on in tokens of shape {list(tokens.shape)}: "
            "give at least one sequence of two tokens"
        )


def calibrate(
    model: nn.Module,
    tokens: Tensor,
    names: Iterable[str],
    *,
    progress: Progress = silent,
) -> dict[str, dict[str, Tensor]]:
    """Measure statistics of every linear layer in one pass over the dense model.

    Args:
        model: a causal language model; its weights, modes and flags are left as they were.
        tokens: ``[samples, length]``, int64; one sequence goes through at a time.
        names: which statistics, of `gpprune.primitives.STATISTICS`; only these are measured, and
            without any the model does not run. What each costs, `MEASURERS` says.
        progress: called as ``progress("calibrating", done, samples)``.

    Returns:
        Each layer's statistics by name, float32 on the device of its weight, by the layer's name
        in the model's order. Layers of which the same was measured may share a tensor.

    Raises:
        UsageError: there are no tokens to calibrate on, or a statistic is unknown.
        GppruneError: the model has no linear layers in blocks, or a damaged weight; no token
            reached a layer, or a statistic of it is not finite.
    """
    check_tokens(tokens)
    layers = linear_layers(model)
    check_weights(layers)
    measuring = Measuring(layers, names)
    if measuring.idle:
        return {name: {} for name in layers}
    with ExitStack() as stack:
        stack.enter_context(quiet_model(model))
        stack.enter_context(measuring.watching(model))
        stack.enter_context(torch.set_grad_enabled(measuring.backward))
        for done, sequence in enumerate(tokens, start=1):
            _run(model, sequence[None], backward=measuring.backward)
            progress("calibrating", done, len(tokens))
    measuring.check_reached()
    return {name: measuring.statistics(name, len(tokens)) for name in layers}


def _run(model: nn.Module, sequence: Tensor, *, backward: bool) -> None:
    """Send one sequence ``[1, length]`` through the model, and its loss back if asked."""
    sequence = sequence.to(next(model.parameters()).device)
    if not backward:
        body(model)(sequence)  # the head's output is not measured
        return
    next_token_loss(model(sequence).logits, sequence).backward()  # type: ignore[no-untyped-call]
