"""What of a layer goes with whole rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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

    def without_unread(self, weight: Tensor) -> Tensor:
        """A weight ``[out, in]`` less the rows that nothing reads: itself, where there are none."""
        if not self.unread or not self.outputs.any():
            return weight
        return weight.masked_fill(self.outputs[:, None], 0)
