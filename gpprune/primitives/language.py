"""Languages: what one kind of formula is made of, for the parser and for DEAP."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from deap import gp

from .nodes import Node, quantise
from .table import PRIMITIVES, TERMINALS, Primitive
from .types import Constant, Elements, ValueType


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
