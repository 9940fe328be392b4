"""Reader of DSA's graph strings, `W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)`.

Element-wise operators, a reduction, transforms and a number that its code parses and never uses.
The graph gives a block's importance from the scores of its layers in one vector; importances are
scaled to a range of sparsities of 2 lambda, the highest the sparsest (Li et al. 2024).
"""

from __future__ import annotations

import re

from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.language import ALLOCATION
from gpprune.primitives.nodes import FormulaError, number_text

AMPLITUDE = 0.16  # 2 lambda of its command line's default

_PRE = {
    "ABS": "abs",
    "LOG": "log",
    "ABSLOG": "abslog",
    "POW": "pow",
    "EXP": "exp",
    "NORMALIZE": "normalize",
    "SIGMOID": "sigmoid",
    "TANH": "tanh",
    "MMS": "mms",
}
_REDUCE = {
    "FROBENIUS_NORM": "frobenius",
    "L1_NORM": "l1",
    "GEOMETRIC_MEAN": "geomean",
    "MEAN": "mean",
    "VAR": "var",
    "STD": "std",
    "ENTROPY": "entropy",
}
_POST = {
    "SIN": "sin",
    "COS": "cos",
    "TAN": "tan",
    "ASIN": "asin",
    "ACOS": "acos",
    "ATAN": "atan",
    "EXP": "exp",
    "LOG": "ln",
    "ABS": "abs",
    "SIGMOID": "sigmoid",
    "TANH": "tanh",
    "SOFTPLUS": "softplus",
}
_NEED_A_MATRIX = {"GRAM", "CORREF", "DIAGONAL", "DETERMINANT", "RANK", "SLOGDET"}
_GRAPH = re.compile(r"W:\(([A-Z0-9_,]*)\)-\(([A-Z0-9_,]*)\)-\(([A-Z0-9_,]*)\)(?:-\((\d+)\))?")


def parse_dsa(text: str, amplitude: float = AMPLITUDE) -> Formula:
    """The allocation that a DSA graph string stands for, meant for decoder blocks as units.

    Args:
        text: the graph string; spaces are ignored.
        amplitude: 2 lambda, the range of the sparsities.

    Raises:
        FormulaError: not of that form, an operator that DSA does not have in that place, or one
            that raises on the vector that DSA's pruning hands it.
    """
    match = _GRAPH.fullmatch("".join(text.split()))
    if match is None:
        raise FormulaError(
            f"{text[:60]!r} is not a DSA graph: write for example W:(ABSLOG)-(VAR)-(ATAN,ASIN)-(7)"
        )
    graph = "dsa_scores(S)"
    for part, known in zip(match.groups()[:3], (_PRE, _REDUCE, _POST), strict=True):
        for name in part.split(",") if part else ():
            if name == "NO_OP":
                continue
            if name in _NEED_A_MATRIX and known is _REDUCE:
                raise FormulaError(
                    f"DSA's {name} needs a matrix, but its pruning gives it a vector: its own "
                    "code stops there"
                )
            if name not in known:
                raise FormulaError(
                    f"{name!r} is not an operator of DSA in that place: there are NO_OP, "
                    f"{', '.join(known)}"
                )
            graph = f"dsa_{known[name]}({graph})"
    return parse(f"spread(dsa_importance({graph}), {number_text(amplitude)})", ALLOCATION)
