"""What is measured of a pruned model, a number a window of text; a loss is an entry of a table."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.evals.next_token import WindowLoss
from gpprune.tables import Table

CaseLoss = Callable[[Tensor], float]
"""From a window's tokens, ``[length]``, int64, to its loss."""


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
    """

    name: str
    about: str
    unit: str
    on: Callable[[nn.Module, nn.Module], CaseLoss]
    mean: str = ""
    figure: str = ""
    shown: Callable[[float], float] = float
    logarithmic: bool = False

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

LOSSES: Table[Loss] = Table("loss", [NEXT_TOKEN])
