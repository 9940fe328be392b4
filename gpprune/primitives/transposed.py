"""The metric that says of a layer's outputs what another says of its inputs."""

from __future__ import annotations

import re

from gpprune.errors import UsageError
from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.types import axes_of
from gpprune.primitives.weights.statistics import STATISTICS

# Under a curvature G (x) A, what a column is to A and G a row is to G and A.
_PAIRS = (("A", "Gk"), ("Ai", "Gi"), ("Gx", "Ay"))
_COUNTERPARTS = {**dict(_PAIRS), **{there: here for here, there in _PAIRS}}
_SIDES = {"row": "col", "col": "row"}


def transposed(formula: Formula) -> Formula:
    """A metric with inputs and outputs exchanged: of ``div(Gx, Ai)``, ``div(Ay, Gi)``.

    Raises:
        UsageError: it reads a statistic of inputs or outputs that has no counterpart.
    """
    for name in sorted(formula.names & STATISTICS.keys() - _COUNTERPARTS.keys()):
        type_ = STATISTICS.find(name).type
        if type_ is not None and len(axes_of(type_)) == 1:
            known = ", ".join(sorted(_COUNTERPARTS))
            raise UsageError(
                f"the metric {formula.text!r} reads {name}, which is of inputs or outputs alone "
                f"and has no counterpart: write it by {known}, W, G or F"
            )
    words = formula.language.words

    def exchanged(match: re.Match[str]) -> str:
        word = match[0]
        other = _SIDES.get(word[:3], "") + word[3:]
        return other if other in words and word[:3] in _SIDES else _COUNTERPARTS.get(word, word)

    return parse(re.sub(r"[A-Za-z_]\w*", exchanged, formula.text), formula.language)


def has_counterpart(formula: Formula) -> bool:
    """Whether a metric can be `transposed`."""
    try:
        transposed(formula)
    except UsageError:
        return False
    return True


def of_inputs(formula: Formula) -> bool:
    """Whether a metric says one value of each input, whatever the output."""
    types = [STATISTICS.find(name).type for name in formula.names & STATISTICS.keys()]
    sides = {axis for type_ in types if type_ is not None for axis in axes_of(type_)}
    return "W" not in formula.names and "out" not in sides
