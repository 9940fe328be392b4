"""Random typed allocations and joint formulas, for property tests."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import strategies as st

from gpprune.primitives import ALLOCATION, JOINT, Formula, Language, Primitive, UnitPrimitive
from gpprune.primitives.types import Elements, Profile, ValueType

Entry = Primitive | UnitPrimitive


def _any(name: str, entry: Entry) -> bool:
    return True


@st.composite
def allocations(
    draw: st.DrawFn,
    depth: int = 5,
    *,
    terminals: frozenset[str] = frozenset(ALLOCATION.terminals),
    admit: Callable[[str, Entry], bool] = _any,
) -> Formula:
    """A typed ALLOCATION formula of at most `depth` or little more, of these terminals.

    `admit(name, entry)` says which primitives may take part.
    """
    grow = _Grower(random.Random(draw(st.integers(0, 2**32))), ALLOCATION, terminals, admit)
    return Formula(grow(Profile, depth), ALLOCATION)


@st.composite
def joints(draw: st.DrawFn, depth: int = 4) -> Formula:
    """A typed JOINT formula: a metric without `S`, and an allocation."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    terminals = frozenset(JOINT.terminals)
    metric = _Grower(rng, JOINT, terminals - {"S"}, _any)(Elements, depth)
    allocation = _Grower(rng, JOINT, terminals, _any)(Profile, depth)
    return Formula([JOINT.nodes["joint"], *metric, *allocation], JOINT)


class _Grower:
    """Grows trees of one language, as nodes in prefix order."""

    def __init__(
        self,
        rng: random.Random,
        language: Language,
        terminals: frozenset[str],
        admit: Callable[[str, Entry], bool],
    ) -> None:
        self.rng = rng
        self.language = language
        self.names = [name for name, entry in language.primitives.items() if admit(name, entry)]
        self.terminals = sorted(terminals)

    def __call__(self, wanted: ValueType, depth: int) -> list[object]:
        fitting = [
            name for name in self.names if issubclass(self.language.primitives[name].result, wanted)
        ]
        leaves = [t for t in self.terminals if issubclass(self.language.terminals[t].type, wanted)]
        constant = issubclass(self.language.constant(1.0).ret, wanted)
        if fitting and depth > 0 and self.rng.random() < 0.9:
            return self._branch(self.rng.choice(fitting), depth)
        if not leaves and not constant:  # only one primitive ends what has no leaves
            return self._branch("dsa_scores", depth)
        if not leaves or (constant and self.rng.random() < 0.2):
            number = self.rng.choice([-1, 1]) * 10 ** self.rng.uniform(-2, 1)
            return [self.language.constant(round(number, 2))]
        return [self.language.nodes[self.rng.choice(leaves)]]

    def _branch(self, name: str, depth: int) -> list[object]:
        node = self.language.nodes[name]
        below = [self(type_, depth - 1) for type_ in node.args]
        return [node, *(inner for branch in below for inner in branch)]
