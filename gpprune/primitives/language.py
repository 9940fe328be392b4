"""Languages: what one kind of formula is made of, for the parser and for DEAP."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from deap import gp

from gpprune.primitives.nodes import FormulaError, Node, quantise, word
from gpprune.primitives.types import Constant, Elements, Joint, Profile, ValueType
from gpprune.primitives.units.table import JOINT as JOINT_PRIMITIVE
from gpprune.primitives.units.table import UNIT_PRIMITIVES, UNIT_TERMINALS, UnitPrimitive
from gpprune.primitives.weights.table import PRIMITIVES, TERMINALS, UNSEARCHED, Primitive


def draw_constant() -> float:
    """A constant for a random tree: two significant digits, log-uniform in [0.01, 10]."""
    return float(f"{10 ** random.uniform(-2, 1):.1e}")


def draw_amplitude() -> float:
    """A constant for a random allocation, whose ranges of sparsity are below 1 and turn over."""
    size = 10 ** random.uniform(-1.3, 0)
    return float(f"{random.choice([-1, 1]) * size:.1e}")


def _any(nodes: Sequence[Node]) -> None:
    """No rule beyond the types."""


@dataclass(frozen=True, eq=False)
class Language:
    """The primitives, terminals and root type of one kind of formula.

    `pset` is the DEAP set that a search generates from; a formula's text may also use the
    primitives and terminals that are not searched (Pruner-Zero's own operators, SparseGPT's
    `D`). A word may name several primitives, of which the type that its place takes says which
    is meant. `check` raises a FormulaError for a tree that breaks a rule that types cannot say.
    """

    name: str
    root: ValueType
    terminals: Mapping[str, ValueType]
    primitives: Mapping[str, Primitive | UnitPrimitive]
    draw: Callable[[], float] = draw_constant
    check: Callable[[Sequence[Node]], None] = _any

    @cached_property
    def pset(self) -> gp.PrimitiveSetTyped:
        """DEAP's primitive set; its one ephemeral constant is called `constant`."""
        pset = gp.PrimitiveSetTyped(self.name, [], self.root)
        for name, type_ in self.terminals.items():
            if name not in UNSEARCHED:
                pset.addTerminal(None, type_, name=name)
        pset.addEphemeralConstant("constant", self.draw, Constant)
        for entry in self.primitives.values():
            if entry.searched:
                pset.addPrimitive(entry.lowering, list(entry.arguments), entry.result, entry.name)
        # a number alone is the uniform allocation: it may be written, but is not worth a draw
        if Profile in pset.terminals:
            pset.terminals[Profile] = [t for t in pset.terminals[Profile] if t.ret is not Constant]
        return pset

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Name -> DEAP node, for every terminal and primitive (searched or not)."""
        nodes: dict[str, Node] = {
            name: self.pset.mapping.get(name) or gp.Terminal(name, True, type_)
            for name, type_ in self.terminals.items()
        }
        for name, entry in self.primitives.items():
            known = self.pset.mapping.get(name)
            nodes[name] = known or gp.Primitive(name, list(entry.arguments), entry.result)
        return nodes

    @cached_property
    def words(self) -> Mapping[str, Sequence[Node]]:
        """Word of formula text -> the nodes that it may mean, the widest type first."""
        words: defaultdict[str, list[Node]] = defaultdict(list)
        for name, node in self.nodes.items():
            words[word(name)].append(node)
        return dict(words)

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


METRIC = Language(
    "metric", Elements, {name: type_ for name, (type_, _) in TERMINALS.items()}, PRIMITIVES
)

_UNIT_TYPES = {name: type_ for name, (type_, _) in UNIT_TERMINALS.items()}
_ALL: dict[str, Primitive | UnitPrimitive] = {**PRIMITIVES, **UNIT_PRIMITIVES}

ALLOCATION = Language("allocation", Profile, _UNIT_TYPES, _ALL, draw_amplitude)

JOINT = Language(
    "joint",
    Joint,
    _UNIT_TYPES,
    {**_ALL, JOINT_PRIMITIVE.name: JOINT_PRIMITIVE},
    draw_amplitude,
    _metric_without_scores,
)

LANGUAGES: dict[str, Language] = {
    language.name: language for language in (METRIC, ALLOCATION, JOINT)
}
