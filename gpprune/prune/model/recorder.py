"""How a model calls its decoder blocks: recorded from the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gpprune.errors import GppruneError
from gpprune.prune.model.run import body

SLOT = object()  # stands where the hidden states were passed


class NotAChain(GppruneError):
    """A model's blocks are no plain chain, so they cannot be run one at a time."""


@dataclass(frozen=True)
class Call:
    """How the model called a block, with ``SLOT`` in place of the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, block: Callable[..., Any], state: Tensor) -> Tensor:
        """The block's output hidden states for the input states ``[1, length, hidden]``."""
        args = (state if value is SLOT else value for value in self.args)
        kwargs = {name: state if v is SLOT else v for name, v in self.kwargs.items()}
        return hidden_states(block(*args, **kwargs))

    def same(self, other: Call) -> bool:
        """Whether two calls pass the same tensors, beside the hidden states."""
        ours, theirs = (
            [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
            for call in (self, other)
        )
        return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@contextmanager
def in_place_of(items: list[nn.Module], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Let blocks do something else than their own."""
    own = [item.__dict__.get("forward") for item in items]
    try:
        for item, forward in zip(items, forwards, strict=True):
            item.__dict__["forward"] = forward
        yield
    finally:
        for item, before in zip(items, own, strict=True):
            item.__dict__.pop("forward", None)
            if before is not None:
                item.__dict__["forward"] = before


def returning(state: Tensor | Callable[[], Tensor], rest: Any) -> Callable[..., Any]:
    """A block's forward that returns given states; ``rest`` is the rest of its output."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = state if isinstance(state, Tensor) else state()
        return states if rest is None else (states, *rest)

    return forward


class Recorder:
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
        self.calls: list[Call] = []
        self.outputs: list[Any] = []  # of each block, without the hidden states

    @property
    def states(self) -> Tensor:
        """The first block's input states, ``[1, length, hidden]``."""
        if self._first is None:
            raise not_a_chain("none ran")
        return self._first

    @property
    def last(self) -> Tensor:
        """What the last block that ran wrote."""
        if self._latest is None:
            raise not_a_chain("none ran")
        return self._latest

    @torch.no_grad()
    def record(self, model: nn.Module, sequence: Tensor) -> Any:
        """Send one sequence ``[1, length]`` through the model, and return what its body does."""
        with self._listening():
            output = body(model)(sequence)
        if len(self.calls) != len(self._items):
            raise not_a_chain(f"{len(self.calls)} of {len(self._items)} ran")
        return output

    @contextmanager
    def _listening(self) -> Iterator[None]:
        handles: list[RemovableHandle] = []
        try:
            for item in self._items:
                handles.append(item.register_forward_pre_hook(self._before, with_kwargs=True))
                handles.append(item.register_forward_hook(self._after))
            if self._given is None:
                yield
            else:
                # each hands on the states that it is given
                forwards = [returning(lambda: self.last, rest) for rest in self._given]
                with in_place_of(self._items, forwards):
                    yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        place = len(self.calls)
        if place >= len(self._items) or module is not self._items[place]:
            raise not_a_chain("they do not run once each, in their order")
        if self._latest is None:
            self._first = self._latest = _first_states(args, kwargs)
        state = self._latest
        call = Call(
            tuple(SLOT if value is state else value for value in args),
            {name: SLOT if value is state else value for name, value in kwargs.items()},
        )
        if not any(value is SLOT for value in (*call.args, *call.kwargs.values())):
            raise not_a_chain("hidden states are changed between two of them")
        self.calls.append(call)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._latest = hidden_states(output)
        self.outputs.append(None if isinstance(output, Tensor) else tuple(output[1:]))


def _first_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The states passed to the first block: the first floating ``[1, length, hidden]``."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3:
            return value
    raise not_a_chain("the first is given no hidden states")


def hidden_states(output: Any) -> Tensor:
    """The hidden states in a block's output: itself, or the first of a tuple."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise not_a_chain(f"one returns a {type(output).__name__}")
    return first


def not_a_chain(reason: str) -> NotAChain:
    """The error for a model whose blocks cannot be run one at a time."""
    return NotAChain(
        f"this model's blocks are not a plain chain ({reason}), so it cannot be calibrated block "
        "by block: calibrate it in one pass with order='dense'"
    )
