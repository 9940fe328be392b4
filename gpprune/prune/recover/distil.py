"""Train the weights that stay, so that a pruned model predicts what the dense one did.

LLM Surgeon corrects between its shots (van der Ouderaa et al. 2024, arXiv 2312.17244) by low-rank
adapters. Here each weight that stays is trained, and none that went comes back. The aim is what the
dense model predicts (Hinton et al. 2015, arXiv 1503.02531): a whole distribution says more than the
one token that comes next, so little text is enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.recorder import in_place_of
from gpprune.prune.model.run import body, listening, quiet_model
from gpprune.prune.model.structure import linear_layers

RATE = 1e-4  # Adam's, at its highest
_BETAS = (0.9, 0.99)
_BATCH = 2  # sequences
_SAME = 1e-3  # as a share: rounding
_WARM = 0.1  # of all steps, in which the rate rises; then it falls to 0 as a cosine


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


def distil(
    model: nn.Module,
    dense: Predictions,
    rows: Sequence[int],
    epochs: int,
    *,
    rate: float = RATE,
    progress: Progress = silent,
) -> list[float]:
    """Train the weights of a model's linear layers in place towards the dense model's predictions.

    What is 0 stays 0, and what is not a linear layer of a block stays as it is. The loss is the
    mean over tokens of KL(dense || pruned). Adam takes a step each two sequences; the weights of a
    model of less than float32 are kept in float32 until the end. Beside the model are the
    gradients, Adam's two moments and a byte a weight.

    Args:
        model: pruned; the one that `dense` was made of.
        dense: what is aimed at.
        rows: the sequences to train on, by their places in the text of `dense`.
        epochs: how often each is read.
        rate: the highest learning rate: it rises over a tenth of the steps, and falls to 0.
        progress: called as ``progress("recovering", done, total)``, in steps.

    Returns:
        The mean loss of each epoch while it was trained, in nats a token.

    Raises:
        UsageError: there are no sequences.
        GppruneError: the loss or a gradient is not finite, or the model writes over what its
            gradients need; the weights are those after the step before.
    """
    if not rows:
        raise UsageError("there is no text to train on: give at least one sequence")
    steps = epochs * math.ceil(len(rows) / _BATCH)
    draw = torch.Generator().manual_seed(0)
    found, done = [], 0
    with quiet_model(model), _training(model) as weights:
        own = [one if one.dtype == torch.float64 else one.detach().float() for one in weights]
        gone = [one == 0 for one in own]
        adam = torch.optim.Adam(own, betas=_BETAS, foreach=False)  # else a copy more on a GPU
        for _ in range(epochs):
            mixed = [rows[at] for at in torch.randperm(len(rows), generator=draw).tolist()]
            total = 0.0
            for first in range(0, len(mixed), _BATCH):
                batch = mixed[first : first + _BATCH]
                total += sum(_learn(model, dense, batch))
                adam.param_groups[0]["lr"] = rate * _share(done, steps)
                _step(adam, weights, own, gone)
                done += 1
                progress("recovering", done, steps)
            found.append(total / len(rows))
    return found


def _share(done: int, steps: int) -> float:
    """The share of the rate that the next step takes."""
    rising = min(1.0, (done + 1) / (_WARM * steps))
    return rising * (1 + math.cos(math.pi * done / steps)) / 2


def _learn(model: nn.Module, dense: Predictions, batch: Sequence[int]) -> Iterator[float]:
    """Add up the gradients of a batch's mean loss; gives the loss of each sequence."""
    for sequence, wanted in dense.of(batch):
        logits = model(sequence).logits[0]
        loss = functional.kl_div(
            logits.float().log_softmax(-1),
            wanted.float().log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        found = loss.item()
        if not math.isfinite(found):
            raise _damaged(f"the loss is {found}")
        try:
            (loss / len(batch)).backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise GppruneError(
                f"{type(model).__name__} writes over what its gradients need, so it cannot be "
                "trained: prune it without `recover`"
            ) from error
        yield found


def _damaged(what: str) -> GppruneError:
    return GppruneError(
        f"{what} as the pruned model recovers: its predictions are damaged; take a lower sparsity "
        "or a weight update, or prune it without `recover`"
    )


def _step(
    adam: torch.optim.Adam, weights: list[nn.Parameter], own: list[Tensor], gone: list[Tensor]
) -> None:
    """One step on the weights as they are kept, written into the model."""
    if not all(bool(one.grad.isfinite().all()) for one in weights if one.grad is not None):
        raise _damaged("a gradient is not finite")
    for weight, one, zero in zip(weights, own, gone, strict=True):
        gradient, weight.grad = weight.grad, None
        one.grad = None if gradient is None else gradient.to(one.dtype).masked_fill_(zero, 0)
    adam.step()
    adam.zero_grad()  # or the next ones would be a second copy beside these
    with torch.no_grad():
        for weight, one in zip(weights, own, strict=True):
            if one.data_ptr() != weight.data_ptr():
                weight.copy_(one)


@contextmanager
def _training(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Let gradients flow to the linear layers' weights alone inside this context; gives these."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    ours = {id(layer.parameter): layer.parameter for layer in linear_layers(model).values()}
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in ours)
            parameter.grad = None
        with torch.enable_grad():
            yield list(ours.values())
    finally:
        for parameter, needed, gradient in before:
            parameter.requires_grad_(needed)
            parameter.grad = gradient
