"""Drive a model's decoder blocks one at a time on the hidden states of calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gpprune.errors import GppruneError
from gpprune.progress import Progress, silent
from gpprune.prune.model.run import body
from gpprune.prune.model.structure import blocks

_SLOT = object()  # stands where the hidden states were passed


@dataclass(frozen=True)
class _Call:
    """How the model called a block, with ``_SLOT`` in place of the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, block: Callable[..., Any], state: Tensor) -> Tensor:
        """The block's output hidden states for the input states ``[1, length, hidden]``."""
        args = (state if value is _SLOT else value for value in self.args)
        kwargs = {name: state if v is _SLOT else v for name, v in self.kwargs.items()}
        return _hidden(block(*args, **kwargs))

    def same(self, other: _Call) -> bool:
        """Whether two calls pass the same tensors, beside the hidden states."""
        ours, theirs = (
            [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
            for call in (self, other)
        )
        return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


class BlockRunner:
    """The calibration sequences' hidden states, and the means to send them on block by block.

    How the model calls each block (masks, position embeddings, whatever else it passes) is
    recorded from the model itself, so nothing depends on an architecture's argument names.
    Then :meth:`forward` runs a single block on the states that the blocks before it, pruned by
    then, have made. Only the first sequence goes through the whole dense model; for the others
    the blocks hand their states on untouched while the model's calls are recorded.

    Args:
        model: the dense model.
        tokens: ``[samples, length]``, int64.
        progress: called as ``progress("reading the calibration text", done, samples)``.

    Raises:
        GppruneError: the blocks do not form a chain, each reading what the last one wrote and
            nothing else of what earlier blocks made.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, progress: Progress = silent) -> None:
        self._blocks = list(blocks(model))
        self._calls: list[list[_Call]] = []
        self._states: list[Tensor] = []  # per sequence [1, length, hidden]
        tokens = tokens.to(next(model.parameters()).device)
        dense = _Recorder(self._blocks)
        dense.record(model, tokens[:1])
        for done, sequence in enumerate(tokens, start=1):
            recorder = _Recorder(self._blocks, outputs=dense.outputs)
            recorder.record(model, sequence[None])
            self._states.append(recorder.states)
            self._calls.append(recorder.calls)
            progress("reading the calibration text", done, len(tokens))
        if not all(map(_Call.same, dense.calls, self._calls[0])):
            raise _not_a_chain("a block reads more of earlier blocks than their hidden states")

    def __len__(self) -> int:
        """The number of decoder blocks."""
        return len(self._blocks)

    @property
    def sequences(self) -> int:
        """The number of calibration sequences."""
        return len(self._states)

    @torch.no_grad()
    def forward(
        self, index: int, *, keep: bool, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Run one block on every sequence's states.

        Args:
            index: the block's place in the model.
            keep: whether its outputs become the states, which the next block reads.
            weights: what to use in place of the block's own parameters, see :meth:`output`.
        """
        for place in range(len(self._states)):
            output = self.output(index, place, weights)
            if keep:
                self._states[place] = output

    def output(
        self, index: int, sequence: int, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """One block's output on one sequence's states; gradients flow if they are enabled.

        Args:
            index: the block's place in the model.
            sequence: the place of the sequence among the calibration tokens.
            weights: tensors to use in place of the block's own parameters, by their names in
                the block and laid out like them; the block itself keeps its own.

        Returns:
            Hidden states ``[1, length, hidden]``.
        """
        block: Callable[..., Any] = self._blocks[index]
        if weights is not None:
            block = _substituted(self._blocks[index], weights)
        return self._calls[sequence][index].on(block, self._states[sequence])


def _substituted(block: nn.Module, weights: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The block as a function that uses ``weights`` in place of its own parameters."""

    def call(*args: Any, **kwargs: Any) -> Any:
        own = [(part._parameters, dict(part._parameters)) for part in block.modules()]
        try:
            return functional_call(block, dict(weights), args, kwargs)
        finally:
            # torch puts them back too, but not if an interrupt falls into its exchange.
            for parameters, before in own:
                parameters.update(before)

    return call


class _Recorder:
    """Records how a model calls its blocks in one pass.

    Args:
        items: the blocks.
        outputs: what each block returned in an earlier pass; if given, the blocks do not run
            but return their input states in the same form.
    """

    def __init__(self, items: list[nn.Module], outputs: list[Any] | None = None) -> None:
        self._items = items
        self._given = outputs
        self._first: Tensor | None = None
        self._latest: Tensor | None = None
        self.calls: list[_Call] = []
        self.outputs: list[Any] = []  # of each block, without the hidden states

    @property
    def states(self) -> Tensor:
        """The first block's input states, ``[1, length, hidden]``."""
        if self._first is None:
            raise _not_a_chain("none ran")
        return self._first

    @torch.no_grad()
    def record(self, model: nn.Module, sequence: Tensor) -> None:
        """Send one sequence ``[1, length]`` through the model."""
        with self._listening():
            body(model)(sequence)
        if len(self.calls) != len(self._items):
            raise _not_a_chain(f"{len(self.calls)} of {len(self._items)} ran")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        own = [item.__dict__.get("forward") for item in self._items]
        try:
            for place, item in enumerate(self._items):
                handles.append(item.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(item.register_forward_hook(self._after))
                if self._given is not None:
                    item.__dict__["forward"] = self._stand_in(self._given[place])
            yield
        finally:
            for handle in handles:
                handle.remove()
            for item, forward in zip(self._items, own, strict=True):
                item.__dict__.pop("forward", None)
                if forward is not None:
                    item.__dict__["forward"] = forward

    def _stand_in(self, rest: Any) -> Callable[..., Any]:
        """A block's forward that hands its states on; ``rest`` is the rest of its output."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._latest if rest is None else (self._latest, *rest)

        return forward

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = len(self.calls)
        if place >= len(self._items) or module is not self._items[place]:
            raise _not_a_chain("they do not run once each, in their order")
        if self._latest is None:
            self._first = self._latest = _first_states(args, kwargs)
        state = self._latest
        call = _Call(
            tuple(_SLOT if value is state else value for value in args),
            {name: _SLOT if value is state else value for name, value in kwargs.items()},
        )
        if not any(value is _SLOT for value in (*call.args, *call.kwargs.values())):
            raise _not_a_chain("hidden states are changed between two of them")
        self.calls.append(call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._latest = _hidden(output)
        self.outputs.append(None if isinstance(output, Tensor) else tuple(output[1:]))


def _first_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The states passed to the first block: the first floating ``[1, length, hidden]``."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
            return value
    raise _not_a_chain("the first is given no hidden states")


def _hidden(output: Any) -> Tensor:
    """The hidden states in a block's output: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise _not_a_chain(f"one returns a {type(output).__name__}")
    return first


def _not_a_chain(reason: str) -> GppruneError:
    return GppruneError(
        f"this model's blocks are not a plain chain ({reason}), so it cannot be calibrated block "
        "by block: calibrate it in one pass with order='dense'"
    )
