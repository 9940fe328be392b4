"""How good a model is on windows of text, under one loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.evals.losses.loss import CaseLoss, Loss
from gpprune.evals.losses.next_token import NEXT_TOKEN
from gpprune.progress import Progress, silent

ShownTable = tuple[str, list[str], list[list[str]], list[str]]
"""A table for a reader: its title, its columns, rows of text, and which columns are numbers."""


def shown(figure: float | None, missing: str = "") -> str:
    """A figure for a reader: two digits behind the point, or four in all where it is small."""
    if figure is None:
        return missing
    return f"{figure:.2f}" if abs(figure) >= 10 or not math.isfinite(figure) else f"{figure:.4g}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The losses of windows of text under a model.

    Attributes:
        losses: ``[windows]``, float64, in the loss's unit.
        loss: what was measured.
    """

    losses: Tensor
    loss: Loss = NEXT_TOKEN

    @property
    def mean(self) -> float:
        """The mean over the windows (they are of one length), in the loss's unit."""
        return float(self.losses.mean())

    @property
    def figure(self) -> float:
        """What a reader is shown of the mean: the perplexity of a next-token loss."""
        return self.loss.shown(self.mean)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON under the loss's own names."""
        return {
            self.loss.figure: self.figure,
            self.loss.mean: self.mean,
            "windows": len(self.losses),
        }


def evaluate(
    model: nn.Module,
    windows: Tensor,
    loss: Loss = NEXT_TOKEN,
    *,
    dense: nn.Module | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measure a model on windows of text.

    Args:
        model: a transformers causal language model, in evaluation mode.
        windows: ``[count, length]``, int64.
        loss: what is measured.
        dense: the model that it was pruned from, for a loss that compares the two; by default
            the model itself.
        progress: called as ``progress("judging", done, count)`` after each window.

    Raises:
        UsageError: there is no window, or none with a token to predict.
    """
    check_windows(windows)
    return Evaluation(_losses(loss.on(model, dense or model), windows, progress), loss)


def _losses(measure: CaseLoss, windows: Tensor, progress: Progress = silent) -> Tensor:
    losses = torch.empty(len(windows), dtype=torch.float64)
    for index, window in enumerate(windows):
        losses[index] = measure(window)
        progress("judging", index + 1, len(windows))
    return losses


def window_losses(model: nn.Module, windows: Tensor, progress: Progress = silent) -> Tensor:
    """The next-token loss of each window, ``[count]``, float64.

    Args:
        model: a transformers causal language model, in evaluation mode.
        windows: ``[count, length]``, int64.
        progress: called as ``progress("judging", done, count)``.

    Raises:
        UsageError: as `evaluate`.
    """
    return evaluate(model, windows, progress=progress).losses


def check_windows(windows: Tensor) -> None:
    """See that windows of tokens can be judged on.

    Args:
        windows: ``[count, length]``, int64.

    Raises:
        UsageError: they are of another shape or kind, none, or too short to predict anything.
    """
    shape = list(windows.shape)
    if windows.ndim != 2 or windows.dtype != torch.int64 or shape[0] < 1 or shape[1] < 2:
        raise UsageError(
            f"the windows to judge on are {windows.dtype} of shape {shape}: give int64 "
            "[windows, length] with at least one window of 2 tokens"
        )
