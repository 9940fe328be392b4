"""What a metric does, told by what it does to a fixed probe: the order in which it puts weights.

Algebra does not see that `max(abs(W), 1e-6)` is `abs(W)` wherever it matters. Two metrics that put
a probe's weights into one order are taken for one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.compile.backends import whole
from gpprune.compile.program import Apply, Instruction, Reduce, lower
from gpprune.primitives import PRIMITIVES, STATISTICS, Elements, Formula, ProbeLayer, Sign
from gpprune.primitives.weights.probe import draw_layer

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
        group: "row", "layer" or "model", in which all layers of the probe are put into one order.
    """
    found: list[Tensor] = []
    for terminals in _probe(STATISTICS.revision):
        scores = steady_scores(formula, terminals)
        if scores is None:
            return None
        found.append(scores)
    digest = hashlib.sha256()
    for competing in _COMPETING[group](found):
        digest.update(_order(competing))
    return digest.hexdigest()[:16]


# Of the layers' scores, `[out, in]` each, matrices in whose rows they compete.
_COMPETING: Mapping[str, Callable[[Sequence[Tensor]], Sequence[Tensor]]] = {
    "row": lambda layers: layers,
    "layer": lambda layers: [scores.reshape(1, -1) for scores in layers],
    "model": lambda layers: [torch.cat([scores.reshape(-1) for scores in layers])[None]],
}


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
        case Apply(name=name) if PRIMITIVES[name].scale_free and len(given) > 1:
            least = _LEFT_OF_NORMALISED  # given x, its least or its mean, and a range
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


@dataclass(frozen=True)
class _Shape:
    """A layer of the probe: its size, scales, and what is done to it when it is drawn."""

    rows: int
    columns: int
    uneven: float = 0.0
    scales: Mapping[str, float] = field(default_factory=dict)
    holed: bool = False
    quantised: bool = False


# Some differ by far more between rows and columns than real layers do. Where two formulas differ,
# some part of the probe is to show it: in one row gradients outweigh weights, in another not; the
# sum of all weights has either sign. Some are of quantised weights, which are equal to others and 0
# often; in these some have no gradient, a feature is dead and a neuron silent: there protected
# operators differ. Others are as even as layers are.
_SHAPES = (
    _Shape(64, 128, 2.0),
    _Shape(128, 24, 2.0, quantised=True),
    _Shape(64, 80),
    _Shape(48, 96, scales={"size": 0.02, "gradient": 1e-3, "output": 4.0}),
    _Shape(320, 24, 1.0, holed=True),
    _Shape(24, 320, 1.0, holed=True),
    *(_Shape(24, 16, 1.0) for _ in range(6)),
    *(_Shape(12, 20, quantised=True) for _ in range(4)),
)


@lru_cache(maxsize=1)
def _layers() -> tuple[ProbeLayer, ...]:
    """The layers, drawn one after another; no statistic can change them."""
    generator = torch.Generator().manual_seed(0)
    return tuple(_drawn(generator, place, shape) for place, shape in enumerate(_SHAPES))


def _drawn(generator: torch.Generator, place: int, shape: _Shape) -> ProbeLayer:
    layer = draw_layer(
        generator, place, shape.rows, shape.columns, uneven=shape.uneven, **shape.scales
    )
    if shape.holed:
        return replace(layer, weight=_holed(layer.weight))
    return replace(layer, weight=_stepped(layer.weight)) if shape.quantised else layer


@lru_cache(maxsize=1)
def _probe(revision: int) -> tuple[dict[str, Tensor], ...]:
    """The terminals of each layer, float64, of the statistics as they are."""
    return tuple(map(_terminals, _layers(), _SHAPES))


def _terminals(layer: ProbeLayer, shape: _Shape) -> dict[str, Tensor]:
    found = {"W": layer.weight}
    for name, statistic in STATISTICS.items():
        if statistic.type is None:  # which no formula reads
            continue
        value = statistic.on_probe(layer)
        zeros = shape.quantised and statistic.sign is not Sign.POSITIVE
        found[name] = _with_zeros(value, statistic.type is Elements) if zeros else value
    return found


def _with_zeros(value: Tensor, elements: bool) -> Tensor:
    """Its smallest value as 0, or of a value a weight the smallest in 100 three."""
    size = value.abs()
    least = size.flatten().quantile(0.03) if elements else size.amin()
    return value.where(size > least, torch.zeros((), dtype=torch.float64))


def _holed(weight: Tensor) -> Tensor:
    """The same with a 0 here and there: among hundreds it moves a mean of logarithms."""
    return weight.masked_fill(torch.arange(weight.numel()).view(weight.shape) % 601 == 0, 0.0)


def _stepped(weight: Tensor) -> Tensor:
    """The same in few steps, some of them 1."""
    # a power of 2, so that sums of weights are exact and none is taken for what rounding left
    steps = (weight.abs().amax() / 64).log2().round().exp2()
    stepped = (weight / steps).round() * steps
    stepped[::5, ::7] = torch.sign(stepped[::5, ::7])  # where a logarithm is 0
    return stepped
