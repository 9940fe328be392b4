"""In which order a model is measured and pruned."""

from __future__ import annotations

from collections.abc import Iterable

from gpprune.errors import UsageError
from gpprune.prune.measure.measuring import measurers
from gpprune.prune.update.table import UPDATES

CORRECTED = "corrected"
ORDERS = ("sequential", "true-sequential", CORRECTED, "dense")
"""How calibration and pruning take turns, see `gpprune.prune.prune_model`."""


def check_order(order: str, update: str) -> None:
    """See that an order goes with a weight update.

    Raises:
        UsageError: there is no such order, or it changes weights that the update leaves alone.
    """
    if order not in ORDERS:
        raise UsageError(f"there is no order {order!r}: choose from {', '.join(ORDERS)}")
    found = UPDATES.find(update)
    if order == CORRECTED and found.keeps and found.choose is None:
        raise UsageError(
            f"the order {order!r} makes up for what is pruned before a layer, and the weight "
            f"update {update!r} changes neither its weights nor its mask: name another update, or "
            "take the order 'true-sequential'"
        )


def goes_by_block(order: str, reads: Iterable[str]) -> bool:
    """Whether any of these statistics is measured in an order as block after block is pruned."""
    anew = any(measurer.anew for measurer in measurers(reads))
    return order == CORRECTED or (order != "dense" and anew)
