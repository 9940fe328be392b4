"""Languages: what one kind of formula is made of, for the parser and for DEAP."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from deap import gp

from gpprune.primitives.nodes import FormulaError, Node, quantise, word
from gpprune.primitives.types import Constant, Elements, Joint, Profile, ValueType
from gpprune.primitives.units.primitive import UnitPrimitive
from gpprune.primitives.units.table import PAIRINGS, UNIT_PRIMITIVES
from gpprune.primitives.units.terminals import LEAVES, in_formulas
from gpprune.primitives.vocabulary import Joined, revision_of
from gpprune.primitives.weights.primitive import Primitive
from gpprune.primitives.weights.statistics import STATISTICS, Statistic
from gpprune.primitives.weights.table import PRIMITIVES
from gpprune.primitives.weights.terminals import TERMINALS, Terminal
from gpprune.tables import Table

Leaf: TypeAlias = Terminal | Statistic
Operator: TypeAlias = Primitive | UnitPrimitive


def draw_constant() -> float:
    """A constant for a random tree: two significant digits, log-uniform in [0.01, 10]."""
    return float(f"{10 ** random.uniform(-2, 1):.1e}")


def draw_amplitude() -> float:
    """A constant for a random allocation, whose ranges of sparsity are below 1 and turn over."""
    size = 10 ** random.uniform(-1.3, 0)
    return float(f"{random.choice([-1, 1]) * size:.1e}")


def _any(nodes: Sequence[Node]) -> None:
    """No rule beyond the types."""


class _Derived:
    """What the parser and DEAP make of a language's tables as they are at one time."""

    def __init__(self, language: Language) -> None:
        self.revision = language.revision
        self.language = language
        self.terminals = {
            name: (leaf.type, leaf.searched)
            for name, leaf in language.terminals.items()
            if leaf.type is not None
        }
        self.primitives = dict(language.primitives)

    @cached_property
    def pset(self) -> gp.PrimitiveSetTyped:
        pset = gp.PrimitiveSetTyped(self.language.name, [], self.language.root)
        for name, (type_, searched) in self.terminals.items():
            if searched:
                pset.addTerminal(None, type_, name=name)
        pset.addEphemeralConstant("constant", self.language.draw, Constant)
        for entry in self.primitives.values():
            if entry.searched:
                pset.addPrimitive(entry.lowering, list(entry.arguments), entry.result, entry.name)
        # a number alone is the uniform allocation: it may be written, but is not worth a draw
        if Profile in pset.terminals:
            pset.terminals[Profile] = [t for t in pset.terminals[Profile] if t.ret is not Constant]
        return pset

    @cached_property
    def nodes(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {
            name: self.pset.mapping.get(name) or gp.Terminal(name, True, type_)
            for name, (type_, _) in self.terminals.items()
        }
        for name, entry in self.primitives.items():
            known = self.pset.mapping.get(name)
            nodes[name] = known or gp.Primitive(name, list(entry.arguments), entry.result)
        return nodes

    @cached_property
    def words(self) -> dict[str, list[Node]]:
        words: defaultdict[str, list[Node]] = defaultdict(list)
        for name, node in self.nodes.items():
            words[word(name)].append(node)
        return dict(words)


@dataclass(frozen=True, eq=False)
class Language:
    """The primitives, terminals and root type of one kind of formula.

    All else follows from the tables, as they are when it is asked for: what was added a moment
    ago can be parsed, printed and drawn.

    Attributes:
        name: what it is called.
        root: the type of its formulas.
        terminals: `Terminal`s and `Statistic`s by name.
        primitives: `Primitive`s and `UnitPrimitive`s by name. A word of formula text may name
            several, of which the type that its place takes says which is meant.
        draw: a constant for a random tree, of the global `random`.
        check: raises a FormulaError for a tree that breaks a rule that types cannot say.
    """

    name: str
    root: ValueType
    terminals: Mapping[str, Leaf]
    primitives: Mapping[str, Operator]
    draw: Callable[[], float] = draw_constant
    check: Callable[[Sequence[Node]], None] = _any
    _cache: list[_Derived] = field(default_factory=list, init=False, repr=False)

    @property
    def revision(self) -> tuple[object, ...]:
        """Equal as long as none of its tables has changed; what is derived is good for one."""
        return revision_of(self.terminals), revision_of(self.primitives)

    @property
    def pset(self) -> gp.PrimitiveSetTyped:
        """DEAP's set, which a search generates from; its ephemeral constant is `constant`.

        Formula text may use more: what is not searched has no place in it.
        """
        return self._derived.pset

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Name -> DEAP node, for every terminal and primitive (searched or not)."""
        return self._derived.nodes

    @property
    def words(self) -> Mapping[str, Sequence[Node]]:
        """Word of formula text -> the nodes that it may mean, the widest type first."""
        return self._derived.words

    @property
    def _derived(self) -> _Derived:
        if not self._cache or self._cache[0].revision != self.revision:
            self._cache[:] = [_Derived(self)]
        return self._cache[0]

    def node(self, text: str, wanted: ValueType) -> Node | None:
        """The node that a word means where a type is wanted; if none fits, one that does not."""
        meant: Sequence[Node] = self.words.get(text, ())
        return next(
            (node for node in meant if issubclass(node.ret, wanted)), next(iter(meant), None)
        )

    def constant(self, value: float) -> gp.Terminal:
        """A DEAP ephemeral node that holds `value`; draws no randomness."""
        node: gp.Terminal = object.__new__(self.pset.mapping["constant"])
        node.value = quantise(value)
        return node


def _metric_without_scores(nodes: Sequence[Node]) -> None:
    """`S` stands for the scores of the metric, which is the first argument of `joint`."""
    open_ = 0
    for node in nodes[1:]:
        if not node.arity and node.value == "S":
            raise FormulaError("S stands for the metric's scores, so the metric cannot contain it")
        open_ += node.arity - 1
        if open_ < 0:  # the metric is complete
            return


METRIC = Language("metric", Elements, Joined(TERMINALS, STATISTICS, keep=in_formulas), PRIMITIVES)

ALLOCATION = Language(
    "allocation", Profile, LEAVES, Joined(PRIMITIVES, UNIT_PRIMITIVES), draw_amplitude
)

JOINT = Language(
    "joint",
    Joint,
    LEAVES,
    Joined(PRIMITIVES, UNIT_PRIMITIVES, PAIRINGS),
    draw_amplitude,
    _metric_without_scores,
)

LANGUAGES: Table[Language] = Table("language", (METRIC, ALLOCATION, JOINT))


def terminal_types() -> dict[str, ValueType]:
    """The types of what a metric may read, by name: `W`, and the statistics that have a type."""
    return {name: leaf.type for name, leaf in METRIC.terminals.items() if leaf.type is not None}
