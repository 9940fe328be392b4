"""What a model makes of a window of text, without ever holding all of its logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from gpprune.prune.model.run import NO_IMAGE, image_token

# Tokens whose logits are made at a time. At a vocabulary of 50,000 that is some 25 MB in bfloat16,
# which stays in a large cache; measured best of 64, 128, 256 and a whole window.
_CHUNK = 256
# Tokens on which the head alone is checked against the whole model.
_PROBE = 8

Made = TypeVar("Made")


class Reader:
    """A causal language model that reads windows, one by one.

    What it gives is as exact as the model's own logits, whatever its weights have become since:
    only its structure is looked at when the object is made.

    Where the model's logits are its head applied to its hidden states and nothing else, the head
    is run on a chunk of tokens at a time and no window's logits are ever held whole. That is
    proven on a few tokens, bit for bit: a model that scales or caps its logits is run as it is.

    Windows go through the model one by one, so what is made of a window does not depend on its
    company (and on a CPU larger batches are no faster).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._head = separate_head(model)
        self._image = image_token(model)
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def states(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads where a next token is foretold, and these tokens.

        Args:
            window: ``[length]``, int64, on any device.

        Returns:
            ``[tokens, hidden]``, or logits ``[tokens, vocabulary]`` where no head can be told
            apart, and ``[tokens]``: all after the first but for images, which are not foretold.
        """
        window = window.to(self._device)
        model = self._model if self._head is None else self._model.base_model
        found = model(input_ids=window[None], use_cache=False)
        states = found.logits[0] if self._head is None else found.last_hidden_state[0]
        states, targets = states[:-1], window[1:]
        if self._image != NO_IMAGE:
            words = targets != self._image
            states, targets = states[words], targets[words]
        return states, targets

    @torch.no_grad()
    def logits(self, window: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The logits ``[tokens, vocabulary]`` of some tokens and these, ``[tokens]``, in turns.

        Args:
            window: ``[length]``, int64, on any device.
        """
        states, targets = self.states(window)
        for chunk, wanted in zip(
            torch.split(states, _CHUNK), torch.split(targets, _CHUNK), strict=True
        ):
            yield chunk if self._head is None else self._head(chunk), wanted

    def normaliser(self, logits: Tensor) -> Tensor:
        """The logarithm of the sum of the exponentials of each row of logits, float64."""
        highest = logits.amax(dim=1, keepdim=True)
        powers = self._wide(logits).sub_(highest).exp_()
        return powers.sum(dim=1).double().log() + highest[:, 0].double()

    def _wide(self, logits: Tensor) -> Tensor:
        """A copy of logits that may be overwritten, float32 at least, in memory used again."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows, columns = logits.shape
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.shape[1] != columns:
            buffer = self._buffer = logits.new_empty((_CHUNK, columns), dtype=dtype)
        return buffer[:rows].copy_(logits)


class Once(Generic[Made]):
    """What is made of a window, made when it is first asked for and kept.

    Args:
        make: of a window's tokens, ``[length]``.
    """

    def __init__(self, make: Callable[[Tensor], Made]) -> None:
        self._make = make
        self._made: dict[bytes, Made] = {}

    def __call__(self, window: Tensor) -> Made:
        """What is made of a window, int64 ``[length]``, on any device."""
        key = window.cpu().numpy().tobytes()
        if key not in self._made:
            self._made[key] = self._make(window)
        return self._made[key]


@torch.no_grad()
def separate_head(model: Any) -> nn.Module | None:
    """A model's head, if the head on the hidden states gives the model's own logits, bit for bit.

    Args:
        model: a transformers causal language model, in evaluation mode.
    """
    head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None or getattr(model, "base_model", model) is model:
        return None
    device = next(model.parameters()).device
    vocabulary = model.get_input_embeddings().weight.shape[0]
    probe = (torch.arange(_PROBE, device=device) % vocabulary)[None]
    states = getattr(model.base_model(input_ids=probe, use_cache=False), "last_hidden_state", None)
    if states is None:
        return None
    # Through the head in the shape it has inside the model, so equal means in every bit.
    own: Tensor = model(input_ids=probe, use_cache=False).logits
    return head if torch.equal(head(states), own) else None
