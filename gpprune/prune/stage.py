"""Where a shot stands among several, and what it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from gpprune.prune.measure.cut_off import signs
from gpprune.prune.measure.drift import Originals
from gpprune.prune.model.coupling.axes import Couplings


@dataclass(frozen=True)
class Stage:
    """Where a shot stands among several: which weights went before it, and how far it goes.

    Attributes:
        part: the share of the recipe's zeros that are to be there after it, in ``(0, 1]``.
        held: of each layer by name, bool ``[out, in]``: what went before, which stays out.
        originals: the weights before the first shot, for the order that makes up for pruning; None:
            those that the model has.
        coupled: the model's coupled axes, if they are known.
    """

    part: float = 1.0
    held: Mapping[str, Tensor] = field(default_factory=dict)
    originals: Originals | None = None
    coupled: Couplings | None = None

    @property
    def later(self) -> bool:
        """Whether shots went before it, which may have cut layers off."""
        return bool(self.held)

    def measured(self, names: Iterable[str]) -> frozenset[str]:
        """What is measured where statistics are read: later also what layers are cut off from."""
        return frozenset(names) | (signs(names) if self.later else frozenset())


@dataclass
class Outcome:
    """What one shot of several did; empty where it is the only one.

    Attributes:
        masks: of each layer by name, bool ``[out, in]``, True where a weight is gone.
        predicted: what the curvature says that the loss grows by, in nats a token, of the weights
            as they were or as they were corrected; None where the weight update reads no curvature
            of the outputs.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    predicted: float | None = None
