"""How well a model predicts a window of text: the loss of its next tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Tokens whose logits are made at a time. At a vocabulary of 50,000 that is some 25 MB in bfloat16,
# which stays in a large cache; measured best of 64, 128, 256 and a whole window.
_CHUNK = 256
# Tokens on which the head alone is checked against the whole model.
_PROBE = 8


class WindowLoss:
    """The loss of one window under a causal language model.

    Calls of one object are as exact as the model's own logits, whatever its weights have become
    since: only its structure is looked at when the object is made.

    Where the model's logits are its head applied to its hidden states and nothing else, the head
    is run on a chunk of tokens at a time and no window's logits are ever held whole. That is
    proven on a few tokens, bit for bit: a model that scales or caps its logits is run as it is.

    Windows go through the model one by one, so a window's loss does not depend on its company
    (and on a CPU larger batches are no faster).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._head = self._separate_head()
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def __call__(self, window: Tensor) -> float:
        """The mean negative log-likelihood of a window's tokens after its first.

        Args:
            window: ``[length]``, int64, on any device.

        Returns:
            Nats a token.
        """
        window = window.to(self._device)
        states = self._states(window)[:-1]
        targets = window[1:]
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for chunk, wanted in zip(
            torch.split(states, _CHUNK), torch.split(targets, _CHUNK), strict=True
        ):
            logits = chunk if self._head is None else self._head(chunk)
            total += self._chunk_loss(logits, wanted)
        return float(total) / len(targets)

    def _states(self, window: Tensor) -> Tensor:
        """Hidden states ``[length, hidden]``, or logits ``[length, vocabulary]`` without a head."""
        if self._head is None:
            return self._logits(window)
        states: Tensor = self._body_output(window).last_hidden_state[0]
        return states

    def _logits(self, window: Tensor) -> Tensor:
        logits: Tensor = self._model(input_ids=window[None], use_cache=False).logits[0]
        return logits

    def _body_output(self, window: Tensor) -> Any:
        return self._model.base_model(input_ids=window[None], use_cache=False)

    @torch.no_grad()
    def _separate_head(self) -> nn.Module | None:
        """The model's head, if the head on the hidden states gives the model's own logits."""
        head = getattr(self._model, "get_output_embeddings", lambda: None)()
        if head is None or getattr(self._model, "base_model", self._model) is self._model:
            return None
        vocabulary = self._model.get_input_embeddings().weight.shape[0]
        probe = torch.arange(_PROBE, device=self._device) % vocabulary
        states = getattr(self._body_output(probe), "last_hidden_state", None)
        if states is None:
            return None
        # Through the head in the shape it has inside the model, so equal means in every bit.
        return head if torch.equal(head(states)[0], self._logits(probe)) else None

    def _chunk_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The summed negative log-likelihood of a chunk, a float64 scalar.

        Args:
            logits: ``[tokens, vocabulary]``.
            targets: ``[tokens]``.
        """
        chosen = logits.gather(1, targets[:, None])[:, 0].double()
        highest = logits.amax(dim=1, keepdim=True)
        powers = self._wide(logits).sub_(highest).exp_()
        return (powers.sum(dim=1).double().log() + highest[:, 0].double() - chosen).sum()

    def _wide(self, logits: Tensor) -> Tensor:
        """A copy of logits that may be overwritten, float32 at least, in memory used again."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows, columns = logits.shape
        buffer = self._buffer
        if buffer is None or buffer.dtype != dtype or buffer.shape[1] != columns:
            buffer = self._buffer = logits.new_empty((_CHUNK, columns), dtype=dtype)
        return buffer[:rows].copy_(logits)
