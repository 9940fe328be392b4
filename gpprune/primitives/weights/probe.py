"""A layer of the fixed probe: the weights and measurements that `gpprune.compile.behaviour` ranks.

Scales are about those of SmolLM2-135M, in float64.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProbeLayer:
    """What the probe gives the statistics of one layer to make their values of.

    The five tensors were drawn together and are shared; `normal` and `lognormal` draw anew, and
    what they give depends on the statistic's name and the layer alone.

    Attributes:
        weight: `[out, in]`, signed.
        inputs: `[in]`, positive: sizes of input features.
        outputs: `[out]`, positive: sizes of output neurons.
        gradients: `[out, in]`, positive: sizes of gradients.
        factor: `[in]`, positive, about 1.
        uneven: how far rows and columns differ, logarithmically; 0 as in most layers, up to 2.
        place: which layer of the probe it is.
    """

    weight: Tensor
    inputs: Tensor
    outputs: Tensor
    gradients: Tensor
    factor: Tensor
    uneven: float
    place: int
    generator: torch.Generator

    @property
    def out_features(self) -> int:
        """How many output neurons it has."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """How many input features it has."""
        return self.weight.shape[1]

    def draws_for(self, name: str) -> ProbeLayer:
        """The same layer, with draws of a statistic's own."""
        seed = zlib.crc32(f"{name} {self.place}".encode())
        return replace(self, generator=torch.Generator().manual_seed(seed))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        return _normal(self.generator, *shape)

    def lognormal(self, spread: float, *shape: int) -> Tensor:
        """Positive values about 1 whose logarithms spread so far, one in 25 an outlier."""
        return _lognormal(self.generator, spread, *shape)


def draw_layer(
    generator: torch.Generator,
    place: int,
    rows: int,
    columns: int,
    *,
    uneven: float = 0.0,
    size: float = 0.2,
    gradient: float = 6e-5,
    output: float = 20.0,
) -> ProbeLayer:
    """Draw a layer.

    The order of the draws is part of every behaviour digest that a run has stored: a new
    statistic draws from the layer's `normal` and `lognormal`, not here.

    Args:
        generator: what is drawn from.
        place: which layer of the probe it is.
        rows: output neurons.
        columns: input features.
        uneven: how far rows and columns differ, logarithmically.
        size: of the weights.
        gradient: size of the gradients.
        output: size of the outputs.
    """
    weight = size * _normal(generator, rows, columns)
    weight = weight * _lognormal(generator, uneven / 2, rows, 1)
    gradients = gradient * _lognormal(generator, 1.0, rows, columns)
    gradients = gradients * _lognormal(generator, 2 * uneven, rows, 1)
    weight = weight * _lognormal(generator, uneven / 2, 1, columns)
    inputs = 2.5 * _lognormal(generator, 0.5 + uneven / 2, columns)
    outputs = output * _lognormal(generator, 0.5 + uneven, rows)
    gradients = gradients * _lognormal(generator, 0.3 + 2 * uneven, 1, columns)
    factor = _lognormal(generator, 0.5 + uneven / 2, columns)
    return ProbeLayer(weight, inputs, outputs, gradients, factor, uneven, place, generator)


@lru_cache(maxsize=1)
def small_layer() -> ProbeLayer:
    """A layer of 3 x 5 that statistics are tried on when they are made; not part of the probe."""
    return draw_layer(torch.Generator().manual_seed(0), -1, 3, 5)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _lognormal(generator: torch.Generator, spread: float, *shape: int) -> Tensor:
    rare, far = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    outliers = torch.where(rare < 0.04, (4 * far).exp(), 1.0)
    return _normal(generator, *shape).mul(spread).exp() * outliers
