"""Formulas: immutable typed expressions with a text, a meaning and a canonical form."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import sympy
import torch
from deap import gp

from gpprune.primitives.canonical.form import IrreducibleError, canonical_text
from gpprune.primitives.language import ALLOCATION, JOINT, METRIC, Language
from gpprune.primitives.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    FormulaError,
    Node,
    fold,
    kind,
    number_text,
    word,
)
from gpprune.primitives.parser import read
from gpprune.primitives.units.primitive import UnitPrimitive
from gpprune.primitives.weights.primitive import Primitive


class Formula:
    """An immutable typed expression of a language.

    Two formulas are equal when language and text are. Build one with `gpprune.parse` or from a
    DEAP tree; a tree deeper than 64 or of more than 1,000 nodes is refused.
    """

    def __init__(self, tree: Sequence[Node], language: Language = METRIC) -> None:
        self.language = language
        self._nodes = tuple(tree)
        self._forms: dict[str | None, Formula] = {}
        if len(self._nodes) > MAX_NODES:
            raise FormulaError(
                f"a formula of {len(self._nodes):,} nodes is too large: at most {MAX_NODES:,}"
            )
        if self.depth > MAX_DEPTH:
            raise FormulaError(f"a formula {self.depth:,} deep is too deep: at most {MAX_DEPTH}")
        language.check(self._nodes)

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
        return text_digest(self.text, self.language)

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
        return frozenset(n.value for n in self._nodes if kind(n) == "terminal")

    @property
    def parts(self) -> tuple[Formula, Formula]:
        """The metric and the allocation of a joint formula.

        Raises:
            FormulaError: it is of another language.
        """
        if self.language is not JOINT:
            raise FormulaError(f"a {self.language.name} formula has no metric and allocation")
        tree = self.tree
        end = tree.searchSubtree(1).stop
        metric = _in_language(tree[1:end], METRIC)
        return Formula(metric, METRIC), Formula(_in_language(tree[end:], ALLOCATION), ALLOCATION)

    def canonical(self, group: str | None = "layer") -> Formula:
        """The canonical form: one formula for many that mean the same.

        Args:
            group: `None` keeps the value; "row", "layer" or "model" keeps only the order of scores
                inside the comparison group, which is all that a mask depends on.

        A formula whose form would be too large, or would not mean the same (Pruner-Zero's norms
        depend on the shape of their arguments), is its own form. It is made once.
        """
        if group not in self._forms:
            self._forms[group] = self._canonical(group)
        return self._forms[group]

    def _canonical(self, group: str | None) -> Formula:
        try:
            return parse(canonical_text(self._nodes, group), self.language)
        except (IrreducibleError, FormulaError):  # FormulaError: larger than a formula may be
            return self  # a merge is lost, nothing else

    def _symbolic(self, node: Any, arguments: list[sympy.Expr]) -> sympy.Expr:
        match kind(node):
            case "constant":
                return sympy.Rational(number_text(node.value))
            case "terminal":
                return self.language.terminals[node.value].symbol
        entry = self.language.primitives[node.name]
        known = folded_number(entry, arguments)
        return entry.symbolic(*arguments) if known is None else known

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


def text_digest(text: str, language: Language) -> str:
    """The digest of the formula that has this text."""
    return hashlib.sha256(f"{language.name}:{text}".encode()).hexdigest()[:16]


def folded_number(
    entry: Primitive | UnitPrimitive, arguments: list[sympy.Expr]
) -> sympy.Expr | None:
    """An elementwise primitive of numbers as a number; sympy's exact powers can be endless."""
    if not isinstance(entry, Primitive) or entry.lowering.reductions:
        return None
    apply = entry.lowering.apply
    if apply is None:
        return None
    if not all(isinstance(argument, sympy.Number) for argument in arguments):
        return None
    values = [torch.tensor(float(argument), dtype=torch.float64) for argument in arguments]
    return sympy.Rational(number_text(float(apply(*values))))


def _in_language(nodes: Sequence[Node], language: Language) -> list[Node]:
    """The same nodes as another language's own."""
    return [
        language.constant(n.value)
        if kind(n) == "constant"
        else language.nodes[n.name if n.arity else n.value]
        for n in nodes
    ]


def _text(node: Any, arguments: list[str]) -> str:
    match kind(node):
        case "constant":
            return number_text(node.value)
        case "terminal":
            return str(node.value)
    return f"{word(node.name)}({', '.join(arguments)})"


def parse(text: str, language: Language = METRIC) -> Formula:
    """Read formula text. The formula of a text that was read lately is handed out again.

    Args:
        text: for example `mul(abs(W), X)`.
        language: whose primitives and terminals the text may use.

    Raises:
        FormulaError: unknown name, wrong number or type of arguments, unbalanced or empty text,
            a constant out of range, a formula too long, too deep or too large.
    """
    return _parsed(text, language, language.revision)


@lru_cache(maxsize=1024)
def _parsed(text: str, language: Language, revision: object) -> Formula:
    return Formula(read(text, language), language)
