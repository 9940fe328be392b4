"""Drive a model's decoder blocks one at a time on the hidden states of calibration text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gpprune.progress import Progress, silent
from gpprune.prune.model.recorder import (
    Call,
    NotAChain,
    Recorder,
    hidden_states,
    in_place_of,
    not_a_chain,
    returning,
)
from gpprune.prune.model.run import body
from gpprune.prune.model.streamed.pages import not_streamed, pages_of
from gpprune.prune.model.streamed.shelf import Row
from gpprune.prune.model.structure import blocks


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
        NotAChain: the blocks do not form a chain, each reading what the last one wrote and
            nothing else of what earlier blocks made; `NotStreamed` of a streamed model.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, progress: Progress = silent) -> None:
        self._blocks = list(blocks(model))
        self._calls: list[list[Call]] = []
        self._states = Row()  # per sequence [1, length, hidden]
        self._model = model
        try:
            self._record(model, tokens, progress)
        except NotAChain as error:
            if pages_of(model) is None:
                raise
            raise not_streamed("its blocks are no plain chain") from error

    def _record(self, model: nn.Module, tokens: Tensor, progress: Progress) -> None:
        """Record how the model calls its blocks, and the states before the first."""
        self._tokens = tokens = tokens.to(next(model.parameters()).device)
        dense = Recorder(self._blocks)
        self._end = dense.record(model, tokens[:1]), dense.last
        self._rests = dense.outputs
        for done, sequence in enumerate(tokens, start=1):
            recorder = Recorder(self._blocks, outputs=dense.outputs)
            recorder.record(model, sequence[None])
            self._states.append(recorder.states)
            self._calls.append(recorder.calls)
            progress("reading the calibration text", done, len(tokens))
        if not all(map(Call.same, dense.calls, self._calls[0])):
            raise not_a_chain("a block reads more of earlier blocks than their hidden states")

    @property
    def model(self) -> nn.Module:
        """Whose blocks they are."""
        return self._model

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

    @torch.no_grad()
    def advance(self, index: int, sequence: int) -> None:
        """Run one block on one sequence's states; its output becomes them."""
        self._states[sequence] = self.output(index, sequence)

    @property
    def states(self) -> Iterable[Tensor]:
        """What the next block reads of every sequence, each ``[1, length, hidden]``."""
        return self._states

    def restore(self, states: Iterable[Tensor]) -> None:
        """Go on with what the next block is to read of every sequence."""
        for place, state in enumerate(states):
            self._states[place] = state

    def state(self, sequence: int) -> Tensor:
        """What the next block reads of one sequence, ``[1, length, hidden]``."""
        return self._states[sequence]

    def logits(self, sequence: int, state: Tensor) -> Tensor:
        """What the model predicts from a sequence's states behind the last block.

        Gradients flow to the states if they are enabled.

        Args:
            sequence: the place of the sequence among the calibration tokens.
            state: ``[1, length, hidden]``.

        Returns:
            ``[1, length, vocabulary]``.
        """
        with self._standing_in(state):
            found: Tensor = self._model(self._tokens[sequence][None]).logits
        return found

    def weights(self, index: int, without: Collection[str] = ()) -> dict[str, Tensor]:
        """A copy of one block's parameters, for :meth:`output`, without those that are named."""
        named = self._blocks[index].named_parameters()
        return {name: value.detach().clone() for name, value in named if name not in without}

    @torch.no_grad()
    def check_end(self) -> None:
        """See that what follows the blocks reads their last output and nothing else of theirs.

        Raises:
            NotAChain: it does not.
        """
        (wanted, last) = self._end
        with self._standing_in(last):
            found = body(self._model)(self._tokens[:1])
        if not torch.equal(hidden_states(found[:1]), hidden_states(wanted[:1])):
            raise not_a_chain("what follows them reads more than the last one's output")

    def _standing_in(self, state: Tensor) -> AbstractContextManager[None]:
        """Let every block return these states in its form, and do nothing."""
        forwards = [returning(state, rest) for rest in self._rests]
        return in_place_of(self._blocks, forwards)

    def output(
        self,
        index: int,
        sequence: int,
        weights: Mapping[str, Tensor] | None = None,
        *,
        state: Tensor | None = None,
    ) -> Tensor:
        """One block's output on one sequence's states; gradients flow if they are enabled.

        Args:
            index: the block's place in the model.
            sequence: the place of the sequence among the calibration tokens.
            weights: tensors to use in place of the block's own parameters, by their names in
                the block and laid out like them; the block itself keeps its own.
            state: what the block reads in place of the sequence's states.

        Returns:
            Hidden states ``[1, length, hidden]``.
        """
        block: Callable[..., Any] = self._blocks[index]
        if weights is not None:
            block = _substituted(self._blocks[index], weights)
        state = self._states[sequence] if state is None else state
        return self._calls[sequence][index].on(block, state)


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
