"""Formulas and the languages they are written in."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import sympy
from deap import gp

from ..errors import UsageError
from . import symbolic
from .table import PRIMITIVES, TERMINALS, Primitive
from .types import Constant, Elements, ValueType

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


def quantise(value: float) -> float:
    """Round to 12 significant digits, so that equal constants print and hash alike."""
    return float(f"{value:.12g}")


def number_text(value: float) -> str:
    """The shortest text of a constant: `2` for 2.0, `0.5`, `1e-05`."""
    return f"{value:.12g}"


def draw_constant() -> float:
    """A constant for a random tree: two significant digits, log-uniform in [0.01, 10]."""
    return float(f"{10 ** random.uniform(-2, 1):.1e}")


@dataclass(frozen=True, eq=False)
class Language:
    """The primitives, terminals and root type of one kind of formula.

    `pset` is the DEAP set that a search generates from; a formula's text may also use the
    primitives that are not searched (Pruner-Zero's own operators).
    """

    name: str
    root: ValueType
    terminals: Mapping[str, ValueType]
    primitives: Mapping[str, Primitive]

    @cached_property
    def pset(self) -> gp.PrimitiveSetTyped:
        """DEAP's primitive set; its one ephemeral constant is called `constant`."""
        pset = gp.PrimitiveSetTyped(self.name, [], self.root)
        for name, type_ in self.terminals.items():
            pset.addTerminal(None, type_, name=name)
        pset.addEphemeralConstant("constant", draw_constant, Constant)
        for entry in self.primitives.values():
            if entry.searched:
                pset.addPrimitive(entry.lowering, list(entry.arguments), entry.result, entry.name)
        return pset

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Name -> DEAP node, for every terminal and primitive (searched or not)."""
        nodes: dict[str, Node] = {name: self.pset.mapping[name] for name in self.terminals}
        for name, entry in self.primitives.items():
            known = self.pset.mapping.get(name)
            nodes[name] = known or gp.Primitive(name, list(entry.arguments), entry.result)
        return nodes

    def constant(self, value: float) -> gp.Terminal:
        """A DEAP ephemeral node that holds `value`; draws no randomness."""
        node: gp.Terminal = object.__new__(self.pset.mapping["constant"])
        node.value = quantise(value)
        return node


METRIC = Language(
    "metric", Elements, {name: type_ for name, (type_, _) in TERMINALS.items()}, PRIMITIVES
)

LANGUAGES: dict[str, Language] = {METRIC.name: METRIC}


class Formula:
    """An immutable typed expression of a language.

    Two formulas are equal when language and text are. Build one with `gpprune.parse` or from a
    DEAP tree; a tree deeper than 64 or of more than 1,000 nodes is refused.
    """

    def __init__(self, tree: Sequence[Node], language: Language = METRIC) -> None:
        self.language = language
        self._nodes = tuple(tree)
        if len(self._nodes) > MAX_NODES:
            raise FormulaError(
                f"a formula of {len(self._nodes):,} nodes is too large: at most {MAX_NODES:,}"
            )
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula {self.depth:,} deep is too deep: at most {MAX_DEPTH}")

    @property
    def tree(self) -> gp.PrimitiveTree:
        """A fresh DEAP tree that the caller may change."""
        return gp.PrimitiveTree(self._nodes)

    @cached_property
    def text(self) -> str:
        """Formula text; `parse(formula.text)` gives an equal formula."""
        return fold(self._nodes, _text)

    @cached_property
    def expr(self) -> sympy.Expr:
        """The sympy meaning, unsimplified."""
        return fold(self._nodes, self._symbolic)

    @cached_property
    def key(self) -> str:
        """Digest of the canonical form: formulas with one key order a layer's weights alike."""
        return self.canonical("layer").digest

    @cached_property
    def digest(self) -> str:
        """Digest of the text as it stands."""
        return hashlib.sha256(f"{self.language.name}:{self.text}".encode()).hexdigest()[:16]

    @property
    def complexity(self) -> int:
        """The number of nodes."""
        return len(self._nodes)

    @cached_property
    def depth(self) -> int:
        """The number of edges from the root to the deepest leaf."""
        return fold(self._nodes, lambda _, below: 1 + max(below) if below else 0)

    @cached_property
    def names(self) -> frozenset[str]:
        """The terminals that occur in it."""
        return frozenset(n.value for n in self._nodes if _kind(n) == "terminal")

    def canonical(self, group: str | None = "layer") -> Formula:
        """The canonical form: one formula for many that mean the same.

        Args:
            group: `None` keeps the value; "layer" or "row" keeps only the order of scores inside
                the comparison group, which is all that a mask depends on.
        """
        from .canonical import canonical_text
        from .parser import parse

        return parse(canonical_text(self, group), self.language)

    def _symbolic(self, node: Any, arguments: list[sympy.Expr]) -> sympy.Expr:
        match _kind(node):
            case "constant":
                return sympy.Rational(number_text(node.value))
            case "terminal":
                return symbolic.symbol(node.value)
        return self.language.primitives[node.name].symbolic(*arguments)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Formula):
            return NotImplemented
        return self.language is other.language and self.text == other.text

    def __hash__(self) -> int:
        return hash((self.language.name, self.text))

    def __repr__(self) -> str:
        return f"parse({self.text!r})"

    def __str__(self) -> str:
        return self.text


def _kind(node: Any) -> str:
    """Which of "primitive", "constant" or "terminal" a DEAP node is."""
    if node.arity:
        return "primitive"
    return "constant" if isinstance(node.value, float) else "terminal"


def _text(node: Any, arguments: list[str]) -> str:
    match _kind(node):
        case "constant":
            return number_text(node.value)
        case "terminal":
            return str(node.value)
    return f"{node.name}({', '.join(arguments)})"
