"""Reader of Pruner-Zero's tree JSON (`{"data": "mul", "left": {...}, "right": {...}}`).

Its terminals are |W|, the squared input norm X and the float16 gradient norm G; its `div`, `log`,
`exp` and `zsn` differ from ours and have primitives of their own (arXiv 2406.02924).
"""

from __future__ import annotations

import json
from typing import Any

from gpprune.primitives.formula import Formula, parse
from gpprune.primitives.nodes import MAX_DEPTH, FormulaError

_TERMINALS = {"W": "abs(W)", "X": "sqr(X)", "G": "pz_half(G)"}
_UNARY = {
    "sqr": "sqr({})",
    "neg": "neg({})",
    "abs": "abs({})",
    "log": "pz_log({})",
    "exp": "pz_exp({})",
    "sqrt": "sqrt({})",
    "tanh": "tanh({})",
    "pow": "sqr({})",
    "skp": "{}",
    "mms": "minmax({})",
    "zsn": "pz_zsn({})",
}
_BINARY = {"add": "add", "sub": "sub", "mul": "mul", "div": "pz_div"}


def parse_pruner_zero(text: str) -> Formula:
    """The formula that a Pruner-Zero tree computes.

    Raises:
        FormulaError: not JSON, not a tree of that form, an operator it does not have.
    """
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormulaError(f"not a Pruner-Zero tree: the JSON does not read ({error})") from error
    return parse(_text(tree, 0))


def _text(node: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise FormulaError(f"the Pruner-Zero tree is nested more than {MAX_DEPTH} deep")
    if not isinstance(node, dict) or not isinstance(node.get("data"), str):
        raise FormulaError(f'not a Pruner-Zero node: {str(node)[:60]!r} has no "data" name')
    name = node["data"]
    below = [_text(node[side], depth + 1) for side in ("left", "right") if side in node]
    arity = 0 if name in _TERMINALS else 1 if name in _UNARY else 2 if name in _BINARY else None
    if arity is None:
        raise FormulaError(f"{name[:40]!r} is not an operator or terminal of Pruner-Zero")
    if len(below) != arity:
        raise FormulaError(f"Pruner-Zero's {name!r} takes {arity} branches, found {len(below)}")
    if arity == 0:
        return _TERMINALS[name]
    return _UNARY[name].format(*below) if arity == 1 else f"{_BINARY[name]}({', '.join(below)})"
