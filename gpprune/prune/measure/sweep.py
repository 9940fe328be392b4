"""Send text through a model and its loss back, with one decoder block at a time in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.recorder import NotAChain
from gpprune.prune.model.run import (
    body,
    frozen,
    image_token,
    next_token_loss,
    quiet_model,
    sampled_tokens,
)
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.model.streamed.pages import not_streamed, pages_of
from gpprune.prune.model.streamed.shelf import Shelf
from gpprune.prune.model.structure import LinearLayer

Layers = Mapping[str, LinearLayer]
# Entered around the passes over some layers, of which everything is known when it is left.
Visit = Callable[[Layers], AbstractContextManager[None]]

LABELS = ("true", "sampled")


@dataclass
class Labels:
    """Which next tokens the loss is of.

    Attributes:
        kind: ``"true"``, those of the text (the empirical Fisher), or ``"sampled"``: one drawn for
            each token from the model's own prediction, which makes sums of squared gradients
            unbiased estimates of the Fisher information.
        seed: of the draws.

    Raises:
        UsageError: there is no such kind.
    """

    kind: str = "true"
    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in LABELS:
            raise UsageError(f"there are no labels {self.kind!r}: choose from {', '.join(LABELS)}")
        self.restart()

    def restart(self) -> None:
        """Draw from the seed again."""
        self._generator = torch.Generator().manual_seed(self.seed)

    def loss(self, model: nn.Module, logits: Tensor, tokens: Tensor) -> Tensor:
        """A model's mean loss of ``logits`` ``[1, length, vocabulary]`` on ``[1, length]``."""
        ignored, labels = image_token(model), tokens
        if self.kind == "sampled":
            drawn = sampled_tokens(logits, tokens, self._generator)
            labels = torch.where(tokens == ignored, tokens, drawn)
        return next_token_loss(logits, labels, ignored)


def sweep(
    model: nn.Module,
    layers: Layers,
    tokens: Tensor,
    *,
    forward: Visit | None = None,
    backward: Visit | None = None,
    labels: Labels | None = None,
    progress: Progress = silent,
) -> None:
    """Visit the layers block by block, first on the way forward and then on the way back.

    The hidden states before each block are kept, in a temporary directory where they are many, and
    each block is run again when the loss's gradient comes back to it: the graph of one block on one
    sequence is in memory, and what a visit gathers of one block. No parameter takes a gradient but
    those that a visit asks for. Where the blocks are no plain chain, all layers are visited at
    once, with a pass of the whole model for each sequence.

    Args:
        model: a causal language model; its modes and flags are left as they were.
        layers: its linear layers.
        tokens: ``[samples, length]``, int64.
        forward: entered with the layers of a block while each sequence runs through it.
        backward: entered while each sequence's mean next-token loss runs back through it.
        labels: which loss that is; by default that of the true next tokens.
        progress: called as ``progress("calibrating", done, total)``.
    """
    labels = labels or Labels()
    labels.restart()
    with ExitStack() as stack:
        stack.enter_context(quiet_model(model))
        stack.enter_context(frozen(model))
        try:
            runner = BlockRunner(model, tokens, progress)
            if backward is not None:
                runner.check_end()
        except NotAChain as error:
            if pages_of(model) is not None:
                raise not_streamed("its blocks are no plain chain") from error
            visits = [visit for visit in (forward, backward) if visit is not None]
            whole(model, layers, tokens, visits, labels if backward else None, progress)
            return
        by_block: list[dict[str, LinearLayer]] = [{} for _ in range(len(runner))]
        for name, layer in layers.items():
            by_block[layer.block][name] = layer
        way = _Way(runner, by_block, tokens, progress, rounds=1 if backward is None else 2)
        with Shelf() as states:
            way.forward(forward, None if backward is None else states)
            if backward is not None:
                way.back(backward, states, labels)


def whole(
    model: nn.Module,
    layers: Layers,
    tokens: Tensor,
    visits: list[Visit],
    labels: Labels | None,
    progress: Progress = silent,
) -> None:
    """Visit all layers at once, with one pass of the whole model for each sequence.

    Args:
        model: in evaluation mode.
        layers: its linear layers.
        tokens: ``[samples, length]``, int64.
        visits: entered together.
        labels: of the loss that is sent back; None for none.
        progress: called as ``progress("calibrating", done, samples)``.
    """
    device = next(model.parameters()).device
    with ExitStack() as stack:
        for visit in visits:
            stack.enter_context(visit(layers))
        with torch.set_grad_enabled(labels is not None):
            for done, sequence in enumerate(tokens.to(device), start=1):
                if labels is None:
                    body(model)(sequence[None])  # the head's output is not measured
                else:
                    loss = labels.loss(model, model(sequence[None]).logits, sequence[None])
                    loss.backward()  # type: ignore[no-untyped-call]
                progress("calibrating", done, len(tokens))


class _Way:
    """The passes over a chain of blocks."""

    def __init__(
        self,
        runner: BlockRunner,
        by_block: list[dict[str, LinearLayer]],
        tokens: Tensor,
        progress: Progress,
        rounds: int,
    ) -> None:
        self._runner = runner
        self._by_block = by_block
        self._tokens = tokens
        self._progress = progress
        self._total = rounds * len(runner) * len(tokens)
        self._done = 0

    def _step(self) -> None:
        self._done += 1
        self._progress("calibrating", self._done, self._total)

    @torch.no_grad()
    def forward(self, visit: Visit | None, states: Shelf | None) -> None:
        """Every sequence through every block; the states before each are kept, if wanted."""
        for index, layers in enumerate(self._by_block):
            with nullcontext() if visit is None else visit(layers):
                for place in range(len(self._tokens)):
                    if states is not None:
                        states.put((index, place), self._runner.state(place))
                    self._runner.advance(index, place)
                    self._step()

    @torch.enable_grad()
    def back(self, visit: Visit, states: Shelf, labels: Labels) -> None:
        """Every sequence's loss back through every block."""
        gradients = [self._at_the_end(place, labels) for place in range(len(self._tokens))]
        for index in reversed(range(len(self._by_block))):
            with visit(self._by_block[index]):
                for place, gradient in enumerate(gradients):
                    state = states.take((index, place))
                    gradients[place] = self._through(index, place, state, gradient)
                    self._step()

    def _through(self, index: int, place: int, state: Tensor, gradient: Tensor) -> Tensor:
        """The gradient at a block's input of the one at its output; the graph ends with the call.

        The graph holds what listens to it: left over, it would keep a finished block's sums.
        """
        state = state.detach().requires_grad_()
        torch.autograd.backward(self._runner.output(index, place, state=state), gradient)
        return _gradient(state)

    def _at_the_end(self, place: int, labels: Labels) -> Tensor:
        """The gradient of a sequence's loss at the last block's output."""
        state = self._runner.state(place).detach().requires_grad_()
        logits = self._runner.logits(place, state)
        tokens = self._tokens[place][None].to(logits.device)
        loss = labels.loss(self._runner.model, logits, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        return _gradient(state)


def _gradient(state: Tensor) -> Tensor:
    return torch.zeros_like(state) if state.grad is None else state.grad
