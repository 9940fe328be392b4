"""What is measured of a pruned model, a number a window of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gpprune.errors import UsageError

CaseLoss = Callable[[Tensor], float]
"""From a window's tokens, ``[length]``, int64, to its loss."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a loss makes its cases of.

    Attributes:
        tokenizer: of the model.
        longest: tokens that the model takes at once; None: as many as there are.
        windows: of the text, ``[cases, length]``: there are to be as many cases.
        split: what they are for: "validation" is searched on, "test" is not.
        data: a folder of rows of tasks; None: the hub's.
        documents: of each task, at most, over all cases.
        seed: of their draw.
    """

    tokenizer: Any
    longest: int | None
    windows: Tensor
    split: str
    data: str | None
    documents: int
    seed: int


@dataclass(frozen=True, eq=False)
class Cases:
    """What a model is judged on.

    Attributes:
        rows: ``[cases, width]``, int64, a case each, as the loss reads them.
        documents: by task the SHA-256 of each document in them.
    """

    rows: Tensor
    documents: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Loss:
    """One thing that is measured of a pruned model; lower is better.

    Attributes:
        name: what `--loss` calls it.
        about: what it is, for a person.
        unit: what its values are in.
        on: from the model that is judged and the dense one to what measures a window. Only their
            structure may be looked at here: the judged one's weights change from formula to
            formula. The dense one keeps its own.
        mean: what tables and JSON call the mean over windows; left out, the loss's name.
        figure: what a reader is shown in its place; left out, the mean. `shown` makes it of that.
        shown: an increasing function.
        logarithmic: whether figures are best drawn on a logarithmic axis.
        cases: what is judged on, where that is not the windows of a text.
        compares: whether it is a distance from the dense model, so that it says nothing of one
            model alone.
    """

    name: str
    about: str
    unit: str
    on: Callable[[nn.Module, nn.Module], CaseLoss]
    mean: str = ""
    figure: str = ""
    shown: Callable[[float], float] = float
    logarithmic: bool = False
    cases: Callable[[Reading], Cases] | None = None
    compares: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean or self.name)
        object.__setattr__(self, "figure", self.figure or self.mean)
        if self.shown is not float and self.mean == self.figure:
            raise UsageError(
                f"the loss {self.name!r} shows something else than its mean under the same name "
                f"{self.mean!r}: name its figure"
            )


def perplexity(nll: float) -> float:
    """The exponential of a mean negative log-likelihood in nats a token; infinity past a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
