"""A streamed model: of its decoder blocks one has weights in memory, the others a shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.memory import give_back

Part = tuple[str, nn.Module]  # a module that comes and goes as a whole, with its name in the model


class Source(Protocol):
    """Where the weights of a part come from."""

    def load(self, part: int) -> None:
        """Put the weights of a part into the model."""


class Sink(Protocol):
    """Where the weights of finished blocks go."""

    @property
    def finished(self) -> int:
        """How many blocks are there."""

    @property
    def written(self) -> Source:
        """What reads them back."""

    def states(self) -> Iterator[Tensor]:
        """The hidden states that the last of them handed on, sequence after sequence."""

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write parameters and buffers, by their names in the model."""

    def finish(self, blocks: int, states: Iterable[Tensor]) -> None:
        """Note that so many blocks are there, and the hidden states that the last handed on."""

    def close(self) -> None:
        """Let others write there."""


class Pages:
    """The parts of a streamed model, of which one at most has its weights in memory.

    A part's weights come when its forward pass or somebody who reads a `LinearLayer` asks for them,
    and those of the part before go. So whatever goes through a model in its order works on a
    streamed one. What is changed is written by `finish`; to lose it is an error.

    Args:
        model: its parameters are on the meta device, but for those that lie in no part.
        parts: its decoder blocks in their order, then others that can wait.
        blocks: how many of the parts are decoder blocks.
        source: the weights as they are read.

    Attributes:
        sound: whether all its weights are known to be finite.
        seconds: how long each block took that was finished here.

    Raises:
        GppruneError: parts share a parameter.
    """

    def __init__(
        self, model: nn.Module, parts: Sequence[Part], blocks: int, source: Source
    ) -> None:
        self._model = model
        self._parts = parts
        self._blocks = blocks
        self._source = source
        self._sink: Sink | None = None
        self.sound = False
        self.seconds: list[float] = []
        self._clock = time.perf_counter()
        self._done = set[int]()
        self._inside: int | None = None
        self._versions: list[int] = []
        # owner, name and placeholder of each parameter
        self._places = [list(_parameters(module)) for _, module in parts]
        # which part a parameter lies in
        self._homes = {
            f"{name}.{inner}": part
            for part, (name, module) in enumerate(parts)
            for inner, _ in module.named_parameters()
        }
        shared = [id(place[2]) for places in self._places for place in places]
        if len(set(shared)) < len(shared):
            raise not_streamed(f"the decoder blocks of {type(model).__name__} share weights")
        for part, (_, module) in enumerate(parts):
            module.__dict__["forward"] = self._paged(part, module.forward)
        _PAGES[model] = self

    def _paged(self, part: int, own: Callable[..., Any]) -> Callable[..., Any]:
        """A part's forward pass, which its weights come for."""

        @wraps(own)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.enter(part)
            return own(*args, **kwargs)

        return forward

    def enter(self, part: int) -> None:
        """Have the weights of a part in memory, and of no other."""
        if self._inside == part:
            return
        self.leave()
        source = self._source
        if self._sink is not None and part in self._done:
            source = self._sink.written
        source.load(part)
        for owner, name, placeholder in self._places[part]:
            owner.get_parameter(name).requires_grad_(placeholder.requires_grad)
        self._inside = part
        self._versions = self._seen(part)

    def leave(self) -> None:
        """Let the weights in memory go.

        Raises:
            GppruneError: they were changed, and not finished.
        """
        part, self._inside = self._inside, None
        if part is None:
            return
        changed = self._versions != self._seen(part)
        for owner, name, placeholder in self._places[part]:
            owner._parameters[name] = placeholder
        give_back()
        if changed:
            raise GppruneError(
                f"{self._parts[part][0]!r} was changed and not written: this is a defect"
            )

    def _seen(self, part: int) -> list[int]:
        """How often each parameter of a part was written to."""
        return [owner.get_parameter(name)._version for owner, name, _ in self._places[part]]

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters of the model by name, each with its weights, in the model's order."""
        for name in [name for name, _ in self._model.named_parameters()]:
            yield name, self.value(name)

    def value(self, name: str) -> Tensor:
        """A parameter of the model with its weights."""
        if name in self._homes:
            self.enter(self._homes[name])
        return self._model.get_parameter(name)

    def write_to(self, sink: Sink) -> None:
        """Say where finished blocks go; all that lies in no block is written now."""
        self._sink = sink
        inside = tuple(f"{name}." for name, _ in self._parts)
        state = self._model.state_dict(keep_vars=True)
        sink.put((n, value) for n, value in state.items() if not n.startswith(inside))
        for part in range(self._blocks, len(self._parts)):
            self.enter(part)
            sink.put(self._held(part))

    @property
    def finished(self) -> int:
        """How many decoder blocks were finished, by an earlier process too."""
        return 0 if self._sink is None else self._sink.finished

    def start(self) -> None:
        """Count the seconds of the first block from here."""
        self._clock = time.perf_counter()

    def states(self) -> Iterator[Tensor]:
        """The hidden states that the last finished block handed on, sequence after sequence."""
        return self._given.states()

    def finish(self, block: int, states: Iterable[Tensor] = ()) -> None:
        """Write a block's weights as they are now, and what the next one reads."""
        self.enter(block)
        self._given.put(self._held(block))
        self._given.finish(block + 1, states)
        self.seconds.append(time.perf_counter() - self._clock)
        self._clock = time.perf_counter()
        self._versions = self._seen(block)
        self._done.add(block)

    def settle(self) -> None:
        """From now on read what was written, also by an earlier process."""
        if self.finished < self._blocks:
            raise GppruneError(f"{self.finished} of {self._blocks} blocks: this is a defect")
        self.leave()
        self._done.update(range(len(self._parts)))

    def close(self) -> None:
        """Write no more."""
        if self._sink is not None:
            self._sink.close()

    @property
    def _given(self) -> Sink:
        if self._sink is None:
            raise GppruneError("a streamed model has nowhere to write to: prune it by prune_to")
        return self._sink

    def _held(self, part: int) -> Iterator[tuple[str, Tensor]]:
        name, module = self._parts[part]
        for inner, value in module.state_dict(keep_vars=True).items():
            yield f"{name}.{inner}", value


def pages_of(model: nn.Module) -> Pages | None:
    """The pages of a streamed model; None: all its weights are in memory."""
    return _PAGES.get(model)


class NotStreamed(UsageError):
    """A model or a recipe that cannot be streamed."""


def not_streamed(reason: object) -> NotStreamed:
    """The error for a model that cannot be streamed."""
    return NotStreamed(f"this model cannot be streamed block by block: {reason}")


def values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters of a model by name, each with its weights, also of a streamed one."""
    pages = pages_of(model)
    return model.named_parameters() if pages is None else pages.values()


def value_of(model: nn.Module, name: str) -> Tensor:
    """A parameter of a model with its weights, also of a streamed one."""
    pages = pages_of(model)
    return model.get_parameter(name) if pages is None else pages.value(name)


_PAGES: WeakKeyDictionary[nn.Module, Pages] = WeakKeyDictionary()


def _parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            yield owner, name, parameter
