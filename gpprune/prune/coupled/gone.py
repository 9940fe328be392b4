"""What of a layer goes with whole rows and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpprune.primitives import Formula
from gpprune.primitives.transposed import of_inputs

Statistics = Mapping[str, Mapping[str, Tensor]]  # by layer name


@dataclass(frozen=True, eq=False)
class Gone:
    """The rows and columns of a layer that go.

    Attributes:
        outputs: bool ``[out]``.
        inputs: bool ``[in]``.
        unread: whether nothing reads those outputs any more, so that nothing is to be made up for.
    """

    outputs: Tensor
    inputs: Tensor
    unread: bool = True

    @property
    def mask(self) -> Tensor:
        """The weights that go, bool ``[out, in]``."""
        return self.outputs[:, None] | self.inputs

    @property
    def costs_nothing(self) -> bool:
        """Whether the layer's outputs that are read stay as they are."""
        return not self.inputs.any() and (self.unread or not self.outputs.any())


def costs_along(dim: int, scores: Tensor, metric: Formula) -> Tensor:
    """What each row (0) or column (1) of a layer costs, float64 on the CPU.

    Args:
        dim: along which.
        scores: ``[out, in]``; of rows by the metric with inputs and outputs exchanged.
        metric: says one value of each input, which is the cost; or scores weights, which add up.
    """
    if of_inputs(metric):
        return scores.select(1 - dim, 0).double().cpu()
    return scores.sum(1 - dim, dtype=torch.float64).cpu()
