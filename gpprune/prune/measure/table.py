"""The measurers: how each statistic comes from what is gathered of calibration text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.measure.accumulator import MakeAccumulator
from gpprune.prune.measure.activations import InputSquares, OutputSquares
from gpprune.prune.measure.gradients import SquaredGradients
from gpprune.prune.measure.hessians import InputGrams, inverse_diagonal
from gpprune.prune.model.structure import LinearLayer
from gpprune.tables import Table


def _as_gathered(held: Tensor, layer: LinearLayer, samples: int) -> Tensor:
    return held


@dataclass(frozen=True)
class Measurer:
    """How one statistic is measured: the entry of `MEASURERS` of that statistic's name.

    Attributes:
        name: the statistic's, as in `gpprune.primitives.STATISTICS`.
        accumulator: makes what gathers it, of layers by name. Statistics whose measurers name the
            same accumulator share one instance, so what they have in common is gathered once.
        costs: what measuring takes beside a pass over the model, in words: time and memory.
        of: from what was gathered of a layer (which it only reads), the layer and the number of
            sequences to the statistic; by default it is what was gathered.
        anew: whether pruning block by block measures it again, on what the pruned blocks before
            a layer hand on; else it is the dense model's. Only one without a backward pass can be.
        of_weight: whether `of` reads the layer's weight too. Then each layer has its own, where
            else layers of which the same was gathered (query, key and value) share it.
    """

    name: str
    accumulator: MakeAccumulator
    costs: str
    of: Callable[[Tensor, LinearLayer, int], Tensor] = _as_gathered
    anew: bool = True
    of_weight: bool = False

    def __post_init__(self) -> None:
        if self.anew and getattr(self.accumulator, "backward", False):
            raise UsageError(
                f"the measurer of {self.name!r} needs a backward pass, which no single block has: "
                "give anew=False"
            )


def _root_of_mean(held: Tensor, layer: LinearLayer, samples: int) -> Tensor:
    return (held / samples).sqrt()


def _root(held: Tensor, layer: LinearLayer, samples: int) -> Tensor:
    return held.sqrt().contiguous()


def _diagonal(held: Tensor, layer: LinearLayer, samples: int) -> Tensor:
    return inverse_diagonal(held * (2 / samples), layer.name)


MEASURERS: Table[Measurer] = Table(
    "measurer of a statistic",
    (
        # Wanda's scaling (Sun et al. 2024, arXiv 2306.11695, as its code has it)
        Measurer("X", InputSquares, "next to nothing", _root_of_mean),
        Measurer("Y", OutputSquares, "next to nothing", _root_of_mean),
        # of each sequence's mean next-token loss (GBLM-Pruner, arXiv 2311.04902, its L2 norm)
        Measurer(
            "G",
            SquaredGradients,
            "a backward pass, twice the time of the pass; as much memory as the layers' weights "
            "in float32",
            _root,
            anew=False,
        ),
        Measurer(
            "D",
            InputGrams,
            "about as much time again as the pass; a float32 matrix [in, in] for each tensor that "
            "layers read",
            _diagonal,
        ),
    ),
)
"""How each statistic of `gpprune.primitives.STATISTICS` is measured."""
