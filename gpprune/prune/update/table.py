"""The weight updates: what the weights that stay become when the others go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from gpprune.prune.update.damping import Damping
from gpprune.prune.update.none import none
from gpprune.prune.update.refit import least_squares, refit
from gpprune.tables import Table


@dataclass(frozen=True)
class Update:
    """A weight update: an entry of `UPDATES`.

    Attributes:
        name: what recipes and the command line call it.
        about: what it does in a line, with its source.
        apply: from the dense weight ``[out, in]``, the mask (bool ``[out, in]``, True where a
            weight goes), the statistics in `reads` by name and the damping of the curvature to
            the new weight ``[out, in]``. A pure function: it writes to none of them. What it
            returns where the mask is True does not matter, it becomes 0.
        reads: the statistics that it asks for, by name.
    """

    name: str
    about: str
    apply: Callable[[Tensor, Tensor, Mapping[str, Tensor], Damping], Tensor]
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
        Update(
            "refit",
            "all weights that stay are fitted at once under both factors of the curvature (the "
            "problem of LLM Surgeon, van der Ouderaa et al. 2024, arXiv 2312.17244, by conjugate "
            "gradients)",
            refit,
            frozenset({"aaT", "ggT"}),
        ),
        Update(
            "least-squares",
            "all weights that stay are fitted at once to the dense layer's outputs (as the last "
            "step of ALPS, Meng et al. 2024, arXiv 2406.07831)",
            least_squares,
            frozenset({"aaT"}),
        ),
    ),
)
"""What may happen to the weights that stay."""
