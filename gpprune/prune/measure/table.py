"""The measurers: how each statistic comes from what is gathered of calibration text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.measure.accumulator import Extent, MakeAccumulator
from gpprune.prune.measure.activations import InputSquares, InputTotals, OutputSquares
from gpprune.prune.measure.gradients import (
    GradientGrams,
    GradientSquares,
    Products,
    SquaredGradients,
    SquaredProducts,
)
from gpprune.prune.measure.hessians import (
    DAMPING,
    GRADIENT_DAMPING,
    InputGrams,
    diagonal_of_inverse,
    inverse_diagonal,
)
from gpprune.prune.model.structure import LinearLayer
from gpprune.tables import Table


def _as_gathered(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return held


@dataclass(frozen=True)
class Measurer:
    """How one statistic is measured: the entry of `MEASURERS` of that statistic's name.

    Attributes:
        name: the statistic's, as in `gpprune.primitives.STATISTICS`.
        accumulator: makes what gathers it, of layers by name. Statistics whose measurers name the
            same accumulator share one instance, so what they have in common is gathered once.
        costs: what measuring takes beside a pass over the model, in words: time and memory.
        of: from what was gathered of a layer (which it only reads), the layer and the extent of
            the text to the statistic; by default it is what was gathered.
        anew: whether pruning block by block measures it again, on what the pruned blocks before
            a layer hand on; else it is the dense model's. Only one without a backward pass can be.
        of_weight: whether `of` reads the layer's weight too. Then each layer has its own, where
            else layers of which the same was gathered (query, key and value) share it.
    """

    name: str
    accumulator: MakeAccumulator
    costs: str
    of: Callable[[Tensor, LinearLayer, Extent], Tensor] = _as_gathered
    anew: bool = True
    of_weight: bool = False

    @property
    def backward(self) -> bool:
        """Whether it needs a backward pass."""
        known = getattr(self.accumulator, "backward", None)  # a class says it before it is made
        return known if isinstance(known, bool) else self.accumulator({}).backward

    def __post_init__(self) -> None:
        if self.anew and getattr(self.accumulator, "backward", None) is True:
            raise UsageError(
                f"the measurer of {self.name!r} needs a backward pass, which no single block has: "
                "give anew=False"
            )


def _root_of_mean(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return (held / extent.samples).sqrt()


def _mean_of_samples(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return held / extent.samples


def _root(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return held.sqrt().contiguous()


def _diagonal(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return inverse_diagonal(held * (2 / extent.samples), layer.name)


def _mean(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    """The mean over tokens."""
    return held / extent.tokens


def _mean_square(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    """The mean over tokens of a product of two gradients of the summed loss.

    The backward pass is that of the mean loss, over the length - 1 tokens that are predicted.
    """
    return held * ((extent.length - 1) ** 2 / extent.tokens)


def _inverse_of_inputs(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return diagonal_of_inverse(_mean(held, layer, extent), DAMPING, layer.name)


def _inverse_of_gradients(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    return diagonal_of_inverse(_mean_square(held, layer, extent), GRADIENT_DAMPING, layer.name)


def _outputs(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    weight = layer.weight.double()
    # The float32 matrix may be a little less than positive.
    return ((weight @ _mean(held, layer, extent)) * weight).sum(1).clamp_(min=0)


def _handed_back(held: Tensor, layer: LinearLayer, extent: Extent) -> Tensor:
    weight = layer.weight.double()
    return ((_mean_square(held, layer, extent) @ weight) * weight).sum(0).clamp_(min=0)


# SmolLM2-135M on one sequence of 1,024 tokens, two quiet cores, 2026-11-25: X 3.1 s, D 6.6,
# Ai 10.0, Gk 11.9, G 12.8, ggT 14.3, Gx 14.9, F 21.2, Gi 26.1; all that a search draws 35.7. On
# three sequences: X 5.1 s, ggT 32.9, Gk 34.0, Gi 37.0, F 38.3. The inverses of Ai and Gi are made
# once, not for each sequence.
_GRAMS = "a float32 matrix [in, in] for each tensor that layers read"
_BACK = "a pass block by block and back, four times the time of a pass, and the head's"
_OUTER = f"{_BACK}, and about a pass more; a float32 matrix [out, out] a layer of a block"

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
            f"{_BACK}; as much memory as the layers' weights in float32",
            _root,
            anew=False,
        ),
        Measurer("D", InputGrams, f"about as much time again as the pass; {_GRAMS}", _diagonal),
        # K-FAC's factors, their inverses and costs (LLM Surgeon, van der Ouderaa et al. 2024,
        # arXiv 2312.17244): A = E[a a'] and Gk = E[g g'] over tokens.
        Measurer("A", InputSquares, "next to nothing", _mean),
        Measurer(
            "Ai", InputGrams, f"as D, and an inverse of each matrix; {_GRAMS}", _inverse_of_inputs
        ),
        Measurer("Ay", InputGrams, f"as D; {_GRAMS}", _outputs, of_weight=True),
        Measurer("aaT", InputGrams, f"as D; {_GRAMS}, kept on disk", _mean),
        Measurer("Gk", GradientSquares, _BACK, _mean_square, anew=False),
        Measurer(
            "Gi",
            GradientGrams,
            f"{_OUTER}; float64 inverses, once",
            _inverse_of_gradients,
            anew=False,
        ),
        Measurer(
            "Gx",
            GradientGrams,
            _OUTER,
            _handed_back,
            anew=False,
            of_weight=True,
        ),
        Measurer(
            "ggT",
            GradientGrams,
            f"{_OUTER}, kept on disk",
            _mean_square,
            anew=False,
        ),
        Measurer(
            "F",
            SquaredProducts,
            f"{_BACK}, and about a pass more; a float32 matrix [out, in] a layer",
            _mean_square,
            anew=False,
        ),
        # FLAP's bias compensation and variance (An et al. 2024, arXiv 2312.11983)
        Measurer("Am", InputTotals, "next to nothing", _mean),
        # LLM-Pruner's (Ma et al. 2023, arXiv 2305.11627), of sequences' mean next-token losses
        Measurer(
            "Gm",
            Products,
            f"{_BACK}, and about a pass more; a float32 matrix [out, in] a layer",
            _mean_of_samples,
            anew=False,
        ),
    ),
)
"""How each statistic of `gpprune.primitives.STATISTICS` is measured."""
