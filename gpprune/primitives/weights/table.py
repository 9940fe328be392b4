"""The primitives of metrics.

DEAP's set, the parser, the canonical form, the compiler, the printers and the documentation
table are derived from the entries.
"""

from __future__ import annotations

from gpprune.primitives.vocabulary import Vocabulary
from gpprune.primitives.weights.arithmetic import ARITHMETIC
from gpprune.primitives.weights.primitive import Primitive
from gpprune.primitives.weights.pruner_zero import PRUNER_ZERO
from gpprune.primitives.weights.reductions import NORMALISATIONS, REDUCTIONS

PRIMITIVES: Vocabulary[Primitive] = Vocabulary(
    "primitive", *ARITHMETIC, *NORMALISATIONS, *REDUCTIONS, *PRUNER_ZERO
)
