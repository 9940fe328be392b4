"""What a metric does, told by what it does to a fixed probe: the order in which it puts weights.

Algebra does not see that `max(abs(W), 1e-6)` is `abs(W)` wherever it matters. Two metrics that put
a probe's weights into one order are taken for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.compile.backends import whole
from gpprune.compile.program import Apply, Instruction, Reduce, lower
from gpprune.primitives import Formula

_ROUNDING = 1e-12  # relative; what algebra makes of float64 differs by less
# What a sum, a difference or a normalisation leaves of its terms, relative, where it may be nothing
# but rounding. A sum adds up that of its terms too; values of a sigmoid lie close and are apart.
_LEFT_OF_SUM, _LEFT_OF_TWO, _LEFT_OF_NORMALISED = 1e-10, 1e-12, 1e-14


def behaviour(formula: Formula, group: str) -> str | None:
    """A digest of the order of the probe's weights inside each comparison group.

    None where rounding decides that order: what cancels to next to nothing, such as the mean of a
    z-score, has the sign of its rounding, which on a layer may be another than on the probe.

    Args:
        formula: a metric.
        group: "row" or "layer".
    """
    digest = hashlib.sha256()
    for terminals in _probe():
        scores = steady_scores(formula, terminals)
        if scores is None:
            return None
        digest.update(_order(scores if group == "row" else scores.reshape(1, -1)))
    return digest.hexdigest()[:16]


def steady_scores(formula: Formula, terminals: Mapping[str, Tensor]) -> Tensor | None:
    """Scores of a layer, float64 `[out, in]`; None where rounding decides some of them.

    Args:
        formula: a metric.
        terminals: all that it reads, and `W`.
    """
    program, weight = lower(formula), terminals["W"]
    shape = (weight.shape[0], weight.shape[1])
    like = torch.empty(0, dtype=torch.float64)
    values: dict[int, Tensor] = {}
    for place, instruction in enumerate(program.instructions):
        values[place] = whole(instruction, values, terminals, shape, like)
        if _cancels(instruction, values[place], [values[a] for a in instruction.arguments], shape):
            return None
    return values[program.root].expand(shape)


def _cancels(
    instruction: Instruction, value: Tensor, given: Sequence[Tensor], shape: tuple[int, int]
) -> bool:
    """Whether some of a value is what rounding left of larger ones; an exact 0 is exact."""
    left = value
    match instruction:
        case Reduce(kind="sum" | "mean"):
            least = _LEFT_OF_SUM
            size = whole(instruction, {instruction.arguments[0]: given[0].abs()}, {}, shape, value)
        case Apply(name="add" | "sub"):
            least = _LEFT_OF_TWO
            size = given[0].abs() + given[1].abs()
        case Apply(name="minmax" | "zscore" | "pz_zsn"):  # of x, its least or its mean, a range
            least = _LEFT_OF_NORMALISED
            size = given[0].abs() + given[1].abs()
            left = given[0] - given[1]
        case _:
            return False
    return bool(((value != 0) & (left.abs() <= least * size)).any())


def _order(scores: Tensor) -> bytes:
    """Ranks in each row, equal for scores that are equal but for rounding."""
    ordered, places = scores.sort(dim=1)
    apart = ordered.diff(dim=1) > _ROUNDING * ordered[:, 1:].abs()
    steps = torch.nn.functional.pad(apart.cumsum(dim=1), (1, 0))
    ranks = torch.empty_like(steps).scatter_(1, places, steps)
    return ranks.to(torch.int32).numpy().tobytes()


@lru_cache(maxsize=1)
def _probe() -> tuple[dict[str, Tensor], ...]:
    """Layers of which some differ by far more between rows and columns than real ones do.

    Where two formulas differ, some part of the probe is to show it: in one row gradients outweigh
    weights, in another not; the sum of all weights has either sign. Some are of quantised weights,
    which are equal to others and 0 often; in these some have no gradient, a feature is dead and a
    neuron silent: there protected operators differ. Others are as even as layers are.
    """
    generator = torch.Generator().manual_seed(0)
    return (
        _layer(generator, 64, 128, uneven=2.0),
        _quantised(_layer(generator, 128, 24, uneven=2.0)),
        _layer(generator, 64, 80),
        _layer(generator, 48, 96, size=0.02, gradient=1e-3, output=4.0),
        _holed(_layer(generator, 320, 24, uneven=1.0)),
        _holed(_layer(generator, 24, 320, uneven=1.0)),
        *(_layer(generator, 24, 16, uneven=1.0) for _ in range(6)),
        *(_quantised(_layer(generator, 12, 20)) for _ in range(4)),
    )


def _layer(
    generator: torch.Generator,
    rows: int,
    columns: int,
    *,
    uneven: float = 0.0,
    size: float = 0.2,
    gradient: float = 6e-5,
    output: float = 20.0,
) -> dict[str, Tensor]:
    """Terminals, float64, in scales of about those of SmolLM2-135M; `uneven` logarithmic."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def lognormal(spread: float, *shape: int) -> Tensor:
        rare, far = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
        outliers = torch.where(rare < 0.04, (4 * far).exp(), 1.0)
        return normal(*shape).mul(spread).exp() * outliers

    weight = size * normal(rows, columns) * lognormal(uneven / 2, rows, 1)
    gradients = gradient * lognormal(1.0, rows, columns) * lognormal(2 * uneven, rows, 1)
    return {
        "W": weight * lognormal(uneven / 2, 1, columns),
        "X": 2.5 * lognormal(0.5 + uneven / 2, columns),
        "Y": output * lognormal(0.5 + uneven, rows),
        "G": gradients * lognormal(0.3 + 2 * uneven, 1, columns),
        "D": lognormal(0.5 + uneven / 2, columns),
    }


def _holed(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with a weight of 0 here and there: among hundreds it moves a mean of logarithms."""
    weight = layer["W"]
    holes = torch.arange(weight.numel()).view(weight.shape) % 601 == 0
    return {**layer, "W": weight.masked_fill(holes, 0.0)}


def _quantised(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with weights in few steps, some of them 1, and zeros among all that is measured."""
    # a power of 2, so that sums of weights are exact and none is taken for what rounding left
    steps = (layer["W"].abs().amax() / 64).log2().round().exp2()
    weight = (layer["W"] / steps).round() * steps
    weight[::5, ::7] = torch.sign(weight[::5, ::7])  # where a logarithm is 0
    smallest = layer["G"].flatten().quantile(0.03)
    zero = torch.zeros((), dtype=torch.float64)
    return {
        **layer,
        "W": weight,
        "X": layer["X"].where(layer["X"] > layer["X"].amin(), zero),
        "Y": layer["Y"].where(layer["Y"] > layer["Y"].amin(), zero),
        "G": layer["G"].where(layer["G"] > smallest, zero),
    }
