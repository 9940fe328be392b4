"""What allocations read beside what metrics do: the scores, and what is known of the units."""

from __future__ import annotations

from gpprune.primitives.types import Elements, Sign, Units
from gpprune.primitives.vocabulary import Joined, Vocabulary
from gpprune.primitives.weights.reach import between
from gpprune.primitives.weights.statistics import STATISTICS, Statistic
from gpprune.primitives.weights.terminals import TERMINALS, Terminal

UNIT_TERMINALS: Vocabulary[Terminal] = Vocabulary(
    "terminal",
    Terminal(
        "S",
        Elements,
        "scores of the metric that is pruned by, [out_features, in_features]",
        reach=between(1e-30, 1e30),  # any metric may give them, and most are within
    ),
    Terminal(
        "depth",
        Units,
        "place of a unit's decoder block: 0 the first, 1 the last",
        Sign.NONNEGATIVE,
    ),
    Terminal(
        "fan_in",
        Units,
        "input features of a unit's layer; of a block, their mean",
        Sign.NONNEGATIVE,
    ),
    Terminal(
        "fan_out",
        Units,
        "output neurons of a unit's layer; of a block, their mean",
        Sign.NONNEGATIVE,
    ),
    Terminal("size", Units, "number of a unit's weights", Sign.NONNEGATIVE),
)


def in_formulas(leaf: Terminal | Statistic) -> bool:
    """Whether formulas may read it; some statistics are for weight updates alone."""
    return leaf.type is not None


LEAVES: Joined[Terminal | Statistic] = Joined(
    TERMINALS, STATISTICS, UNIT_TERMINALS, keep=in_formulas
)
"""All that the formulas of any of our languages read, by name."""
