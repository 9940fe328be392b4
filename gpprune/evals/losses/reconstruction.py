"""How far a pruned model's hidden states are from those of the dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpprune.evals.losses.loss import Loss
from gpprune.evals.losses.read import Once, Reader


class Reconstruction:
    """The squared error of the last hidden states on a window, as a share of the dense model's.

    The error of a whole model, as OptiShear (arXiv 2502.10735) searches by. It is a mean over
    tokens of each one's own share, since a few tokens have states far larger than all others
    (Sun et al. 2024, arXiv 2402.17762). No logits are made, unless the head cannot be told apart:
    then they stand in for the states.

    The dense model reads a window once, when that is first asked for; its states are kept.
    """

    def __init__(self, model: nn.Module, dense: nn.Module) -> None:
        """Look at the models.

        Args:
            model: is judged.
            dense: the model that it was pruned from.
        """
        self._pruned, whole = Reader(model), Reader(dense)
        self._wanted = Once(lambda window: whole.states(window)[0].cpu())

    @torch.no_grad()
    def __call__(self, window: Tensor) -> float:
        """The mean over a window's tokens after its first.

        Args:
            window: ``[length]``, int64, on any device.

        Returns:
            The squared norm of the difference over that of the dense model's states.
        """
        found = self._pruned.states(window)[0]
        wanted = self._wanted(window).to(found.device).float()
        error = (found.float() - wanted).square().sum(dim=1).double()
        return float((error / wanted.square().sum(dim=1).double()).mean())


RECONSTRUCTION = Loss(
    name="reconstruction",
    about="squared error of the last hidden states, as a share of the dense model's",
    unit="share a token",
    on=Reconstruction,
    compares=True,
)
