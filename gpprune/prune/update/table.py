"""The weight updates: what the weights that stay become when the others go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gpprune.prune.update.none import none
from gpprune.tables import Table


@dataclass(frozen=True)
class Update:
    """A weight update: an entry of `UPDATES`.

    Attributes:
        name: what recipes and the command line call it.
        about: what it does in a line, with its source.
        apply: from the dense weight ``[out, in]``, the mask (bool ``[out, in]``, True where a
            weight goes) and the statistics in `reads` by name to the new weight ``[out, in]``.
            A pure function: it writes to none of them. What it returns where the mask is True
            does not matter, it becomes 0.
        reads: the statistics that it asks for, by name.
    """

    name: str
    about: str
    apply: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    reads: frozenset[str] = frozenset()


UPDATES: Table[Update] = Table(
    "weight update",
    (
        Update(
            "none",
            "the weights that stay are left as they are (magnitude pruning, Han et al. 2015, "
            "arXiv 1506.02626; Wanda, Sun et al. 2024, arXiv 2306.11695)",
            none,
        ),
    ),
)
"""What may happen to the weights that stay."""
