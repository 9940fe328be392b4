"""In which order a model is measured and pruned."""

from __future__ import annotations

from gpprune.errors import UsageError

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
    if order == CORRECTED and update == "none":
        raise UsageError(
            f"the order {order!r} changes the weights that stay, and the weight update 'none' "
            "leaves them as they are: name another update, or take the order 'true-sequential'"
        )
