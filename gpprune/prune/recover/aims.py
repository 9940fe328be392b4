"""What a pruned model is trained towards: what the dense one predicts, or the text itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpprune.errors import GppruneError
from gpprune.progress import Progress, silent
from gpprune.prune.model.recorder import in_place_of
from gpprune.prune.model.run import body, image_token, listening, next_token_loss, quiet_model

_SAME = 1e-3  # as a share: rounding


class Aim(Protocol):
    """What a model is trained towards."""

    def losses(self, model: nn.Module, rows: Iterable[int]) -> Iterator[Tensor]:
        """The mean loss over the tokens of each sequence, in nats; gradients flow if enabled.

        Args:
            model: in training.
            rows: the places of sequences in the text.
        """


class NextTokens:
    """The next tokens of a text.

    Args:
        tokens: ``[samples, length]``, int64.
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def losses(self, model: nn.Module, rows: Iterable[int]) -> Iterator[Tensor]:
        """See `Aim`."""
        device = _device(model)
        for row in rows:
            sequence = self._tokens[row][None].to(device)
            yield next_token_loss(model(sequence).logits, sequence, image_token(model))


class Predictions:
    """What a model predicts on a text, before it is pruned.

    What its head reads is kept on the CPU, ``[length, hidden]`` a sequence; the head, which is not
    pruned, makes logits of it when they are asked for. Of a model whose head cannot be told apart
    all logits are kept.

    Args:
        model: dense.
        tokens: ``[samples, length]``, int64.
        progress: called as ``progress("predictions", done, total)``.

    Raises:
        GppruneError: a prediction is not finite.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, tokens: Tensor, progress: Progress = silent) -> None:
        self._model = model
        self._tokens = tokens.to(_device(model))
        self._written: list[_Written] = []
        with quiet_model(model):
            self._inner = _before_head(model, self._tokens[:1])
            for done, sequence in enumerate(self._tokens, start=1):
                written = _Written.of(model, self._inner, sequence[None])
                if not written.finite:
                    raise GppruneError(
                        "the dense model's predictions are not finite: it is damaged"
                    )
                self._written.append(written)
                progress("predictions", done, len(tokens))

    def of(self, rows: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Sequences ``[1, length]`` by their places, and their logits ``[length, vocabulary]``."""
        for row in rows:
            sequence = self._tokens[row][None]
            with torch.no_grad():
                logits = self._written[row].logits(self._model, self._inner, sequence)
            yield sequence, logits[0]

    def losses(self, model: nn.Module, rows: Iterable[int]) -> Iterator[Tensor]:
        """KL(dense || pruned), see `Aim`."""
        for sequence, wanted in self.of(rows):
            yield functional.kl_div(
                model(sequence).logits[0].float().log_softmax(-1),
                wanted.float().log_softmax(-1),
                reduction="batchmean",
                log_target=True,
            )


@dataclass(frozen=True)
class _Written:
    """What a module wrote as its model read a sequence, without keys and values.

    Attributes:
        kind: the class that it came in; None: a tensor.
        parts: its tensors by name, on the CPU.
    """

    kind: Any
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, inner: nn.Module, sequence: Tensor) -> _Written:
        """What the module writes, or the model if it is never called."""
        found: list[Any] = []
        with listening([inner.register_forward_hook(lambda _, __, output: found.append(output))]):
            output = model(sequence)
        written = found[-1] if found else output
        if isinstance(written, Tensor):
            return cls(None, {"": written.cpu()})
        parts = {part: getattr(written, part, None) for part in ("last_hidden_state", "logits")}
        return cls(type(written), {k: v.cpu() for k, v in parts.items() if v is not None})

    @property
    def finite(self) -> bool:
        """Whether all of it is."""
        return all(bool(part.isfinite().all()) for part in self.parts.values())

    def logits(self, model: Any, inner: nn.Module, sequence: Tensor) -> Tensor:
        """The logits of a model in which the module writes this."""
        parts = {name: part.to(sequence.device) for name, part in self.parts.items()}
        written = parts[""] if self.kind is None else self.kind(**parts)
        with in_place_of([inner], [lambda *_, **__: written]):
            logits: Tensor = model(sequence).logits
        return logits


def _before_head(model: Any, sequence: Tensor) -> nn.Module:
    """The module that gives the head all that it reads; the model where there is no such module.

    With what it gave of one text in its place, the model predicts on another what it did on that.
    """
    wanted = model(sequence).logits
    other = torch.where(sequence == 0, 1, 0)
    # OPT's head does not go by its body, and ModernBERT's decoder is the head
    for inner in (body(model), getattr(model, "get_decoder", lambda: None)()):
        if isinstance(inner, nn.Module) and inner is not model:
            found = _Written.of(model, inner, sequence).logits(model, inner, other)
            if bool((found - wanted).abs().max() <= _SAME * wanted.abs().max()):
                return inner
    return cast(nn.Module, model)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
