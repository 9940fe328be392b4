"""How far a pruned model's predictions are from those of the dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpprune.evals.losses.loss import Loss
from gpprune.evals.losses.read import Once, Reader

TOP = 256  # of the vocabulary: what is kept of a prediction
_LEAST = 1e-12  # probability of all others, where the kept ones are all that there are


class Divergence:
    """KL(dense || pruned) of the next token's distribution on a window.

    EvoPress (Sieberling et al. 2024, arXiv 2410.14649) has it as its fitness. Of each of the dense
    model's predictions the most likely tokens are kept and the rest of the vocabulary is one more
    outcome, so that the figure is at most that over all tokens, and below zero by rounding alone.

    The dense model reads a window once, when that is first asked for. What is kept is 2 KiB a
    token.
    """

    def __init__(self, model: nn.Module, dense: nn.Module, top: int = TOP) -> None:
        """Look at the models.

        Args:
            model: is judged.
            dense: the model that it was pruned from.
            top: tokens of a prediction that are kept.
        """
        self._pruned, self._dense, self._top = Reader(model), Reader(dense), top
        self._predicted = Once(self._predictions)

    @torch.no_grad()
    def __call__(self, window: Tensor) -> float:
        """The mean over a window's tokens after its first.

        Args:
            window: ``[length]``, int64, on any device.

        Returns:
            Nats a token.
        """
        total, count = 0.0, 0
        for (logits, _), (places, wanted) in zip(
            self._pruned.logits(window), self._predicted(window), strict=True
        ):
            found = _shares(self._pruned, logits, places.to(logits.device).long())
            wanted = wanted.to(logits.device).double()
            total += float((wanted.exp() * (wanted - found)).sum())
            count += len(logits)
        return total / count

    def _predictions(self, window: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of the dense model, a chunk at a time: its likeliest tokens, and `_shares` of them."""
        kept = []
        for logits, _ in self._dense.logits(window):
            places = logits.topk(min(self._top, logits.shape[1]), dim=1).indices
            shares = _shares(self._dense, logits, places)
            kept.append((places.int().cpu(), shares.float().cpu()))
        return kept


def _shares(reader: Reader, logits: Tensor, places: Tensor) -> Tensor:
    """Logarithms of probabilities: of the tokens at places, then of all others together.

    Args:
        reader: of the model.
        logits: ``[tokens, vocabulary]``.
        places: ``[tokens, top]``.

    Returns:
        ``[tokens, top + 1]``, float64.
    """
    each = logits.gather(1, places).double() - reader.normaliser(logits)[:, None]
    others = torch.log1p(-each.exp().sum(dim=1, keepdim=True).clamp(max=1 - _LEAST))
    return torch.cat([each, others], dim=1)


KL = Loss(
    name="kl",
    about=f"KL divergence of predictions from the dense model's, over its {TOP} likeliest tokens",
    unit="nats a token",
    on=Divergence,
    compares=True,
)
