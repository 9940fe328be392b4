"""How well a model predicts a window of text: the loss of its next tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpprune.evals.losses.loss import Loss, perplexity
from gpprune.evals.losses.read import Reader


class WindowLoss:
    """The loss of one window under a causal language model; see `Reader` for how it is run."""

    def __init__(self, model: nn.Module) -> None:
        self._reader = Reader(model)

    @torch.no_grad()
    def __call__(self, window: Tensor) -> float:
        """The mean negative log-likelihood of a window's tokens after its first.

        Args:
            window: ``[length]``, int64, on any device.

        Returns:
            Nats a token.
        """
        total, count = torch.zeros((), dtype=torch.float64), 0
        for logits, targets in self._reader.logits(window):
            chosen = logits.gather(1, targets[:, None])[:, 0].double()
            total = total.to(logits.device) + (self._reader.normaliser(logits) - chosen).sum()
            count += len(targets)
        return float(total) / count


NEXT_TOKEN = Loss(
    name="next-token",
    about="mean negative log-likelihood of each next token",
    unit="nats a token",
    on=lambda model, dense: WindowLoss(model),
    mean="nll",
    figure="perplexity",
    shown=perplexity,
    logarithmic=True,
)
