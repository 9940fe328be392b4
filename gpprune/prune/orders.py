"""In which order a model is measured and pruned."""

from __future__ import annotations

from collections.abc import Collection

from gpprune.errors import UsageError
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


def check_samples(samples: int, order: str, reads: Collection[str]) -> None:
    """See that synthetic samples are of use.

    Args:
        samples: how many there are to be.
        order: one of `ORDERS`.
        reads: the statistics that metric, allocation and weight update ask for, by name.

    Raises:
        UsageError: nothing is measured on them.
    """
    if samples and not reads and order != CORRECTED:
        raise UsageError(
            f"{samples} synthetic samples are of no use, for neither the metric nor the allocation "
            "nor the weight update reads anything of a text: ask for none"
        )
