"""Layers that pruning has cut off: they read nothing but zeros, or the loss does not feel them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from gpprune.prune.measure.gradients import Gradients
from gpprune.prune.measure.measuring import measurers

_INPUTS, _OUTPUTS = "A", "Gk"


def signs(names: Iterable[str]) -> frozenset[str]:
    """The statistics that are 0 throughout for a layer that is cut off from what others measure.

    The others need not be 0 themselves: the inverse of a damped curvature of zeros is not.

    Args:
        names: of the others: `A` is the sign for those of activations, `Gk` for those of the
            gradients of what a layer writes.
    """
    found = set()
    for measurer in measurers(names):
        make = measurer.accumulator
        if not measurer.backward:
            found.add(_INPUTS)
        elif isinstance(make, type) and issubclass(make, Gradients):
            found.add(_OUTPUTS)
    return frozenset(found)


def is_cut_off(statistics: Mapping[str, Tensor], names: Iterable[str]) -> bool:
    """Whether a layer is cut off from what statistics measure.

    Args:
        statistics: of the layer by name; a sign that is not among them is not seen.
        names: of the statistics.
    """
    return any(sign in statistics and not bool(statistics[sign].any()) for sign in signs(names))
