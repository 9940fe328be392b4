"""Measure statistics of a model's linear layers on calibration text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.memory import give_back
from gpprune.primitives import STATISTICS
from gpprune.progress import Progress, silent
from gpprune.prune.measure.accumulator import Extent
from gpprune.prune.measure.measuring import Measuring, measurers
from gpprune.prune.measure.spill import Kept, Library
from gpprune.prune.measure.sweep import Labels, Visit, sweep, whole
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.streamed.pages import pages_of
from gpprune.prune.model.structure import LinearLayer, check_weights, linear_layers


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
    labels: str = "true",
    seed: int = 0,
    cut_off: bool = False,
    progress: Progress = silent,
) -> dict[str, Mapping[str, Tensor]]:
    """Measure statistics of every linear layer of the dense model.

    Without a backward pass and wide statistics (those of no type, which only weight updates read)
    this is one pass over the model. With them, and of a streamed model, block after block is
    measured and finished, so that the memory is one block's, and wide statistics wait in a
    temporary directory.

    Args:
        model: a causal language model; its weights, modes and flags are left as they were.
        tokens: ``[samples, length]``, int64; one sequence goes through at a time.
        names: which statistics, of `gpprune.primitives.STATISTICS`; only these are measured, and
            without any the model does not run. What each costs, `MEASURERS` says.
        labels: which next tokens the loss of a backward pass is of: ``"true"``, those of the text
            (the empirical Fisher), or ``"sampled"``, one a token drawn from the model's own
            prediction (a Monte-Carlo estimate of the Fisher).
        seed: of those draws.
        cut_off: whether layers may be cut off by pruning: what reads nothing but zeros, or is
            never called, is then measured as zeros, where else it is refused.
        progress: called as ``progress("calibrating", done, total)``.

    Returns:
        Each layer's statistics by name, float32 on the device of its weight, by the layer's name
        in the model's order. Layers of which the same was measured may share a tensor. Wide ones
        are read from disk when they are asked for; layers that share one and are asked one after
        another get the same object.

    Raises:
        UsageError: there are no tokens to calibrate on, a statistic is unknown, or there are no
            such labels.
        GppruneError: the model has no linear layers in blocks, or a damaged weight; no token
            reached a layer, or a statistic of it is not finite; the temporary directory is full.
    """
    check_tokens(tokens)
    chosen = Labels(labels, seed)
    layers = linear_layers(model)
    check_weights(layers)
    wanted = measurers(names)
    back = [m.name for m in wanted if m.backward]
    ahead = [m.name for m in wanted if not m.backward]
    found = _Found(model, Extent(*tokens.shape), cut_off)
    with ExitStack() as stack:
        stack.callback(found.close)
        visits = [found.visit(part) if part else None for part in (ahead, back)]
        wide = any(STATISTICS[name].type is None for name in ahead)
        if back or wide or (ahead and pages_of(model) is not None):
            sweep(
                model,
                layers,
                tokens,
                forward=visits[0],
                backward=visits[1],
                labels=chosen,
                progress=progress,
            )
        elif visits[0] is not None:
            with quiet_model(model):
                whole(model, layers, tokens, [visits[0]], None, progress)
        stack.pop_all()
    return {name: found.of(name) for name in layers}


class _Found:
    """What has been measured of the layers so far."""

    def __init__(self, model: nn.Module, extent: Extent, cut_off: bool) -> None:
        self._model = model
        self._extent = extent
        self._cut_off = cut_off
        self._library = Library()
        self._shared: dict[int, tuple[int, Tensor]] = {}  # numbers of wide ones, by identity
        self._own: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
        self._numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)

    def visit(self, names: Sequence[str]) -> Visit:
        """What measures these statistics of the layers that it is entered with."""

        @contextmanager
        def measured(layers: Mapping[str, LinearLayer]) -> Iterator[None]:
            measuring = Measuring(layers, names)
            with measuring.watching(self._model):
                yield
            measuring.check_reached(self._cut_off)
            for name in layers:
                self._keep(name, measuring.statistics(name, self._extent))
            del measuring
            self._shared.clear()
            give_back()

        return measured

    def _keep(self, name: str, statistics: Mapping[str, Tensor]) -> None:
        """Hold a layer's statistics, the wide ones on disk; layers of a visit may share them."""
        for statistic, value in statistics.items():
            if not self._goes_to_disk(statistic, value):
                self._own[name][statistic] = value
                continue
            if id(value) not in self._shared:
                self._shared[id(value)] = (self._library.put(value), value)
            self._numbers[name][statistic] = self._shared[id(value)][0]

    def _goes_to_disk(self, statistic: str, value: Tensor) -> bool:
        """Whether a statistic waits on disk: a wide one, and of a streamed model any matrix."""
        matrix = value.ndim > 1 and pages_of(self._model) is not None
        return STATISTICS[statistic].type is None or matrix

    def of(self, name: str) -> Mapping[str, Tensor]:
        """A layer's statistics."""
        own, numbers = self._own[name], self._numbers[name]
        return Kept(own, numbers, self._library) if numbers else own

    def close(self) -> None:
        """Let the wide ones go."""
        self._library.close()
