"""DEAP nodes, and what is done to a list of them whatever the language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from gpprune.errors import UsageError

T = TypeVar("T")
Node: TypeAlias = Any  # a deap.gp.Primitive or Terminal; DEAP is untyped

MAX_DEPTH = 64
MAX_NODES = 1000


class FormulaError(UsageError):
    """Formula text or a tree that is not a formula of its language."""


def fold(nodes: Sequence[Any], visit: Callable[[Any, list[T]], T]) -> T:
    """Evaluate a prefix list of DEAP nodes bottom up: `visit(node, values of its arguments)`.

    Without recursion, so that a deep tree cannot exhaust the stack.
    """
    stack: list[T] = []
    for node in reversed(nodes):
        arguments = [stack.pop() for _ in range(node.arity)]
        stack.append(visit(node, arguments))
    return stack.pop()


def word(name: str) -> str:
    """What a primitive or terminal is called in formula text: its name without a prefix."""
    return name.rpartition(".")[2]


def quantise(value: float) -> float:
    """Round to 12 significant digits, so that equal constants print and hash alike."""
    return float(f"{value:.12g}")


def number_text(value: float) -> str:
    """The shortest text of a constant: `2` for 2.0, `0.5`, `1e-05`."""
    return f"{value:.12g}"


def kind(node: Any) -> str:
    """Which of "primitive", "constant" or "terminal" a DEAP node is."""
    if node.arity:
        return "primitive"
    return "constant" if isinstance(node.value, float) else "terminal"
