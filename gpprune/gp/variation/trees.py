"""Random trees and their places, typed, on DEAP's trees.

DEAP draws from the global `random`. `reproducible` is the one place that seeds it and gives it
back untouched; all of variation must run inside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy
from deap import gp

from gpprune.errors import GppruneError
from gpprune.primitives import Language

Tree: TypeAlias = gp.PrimitiveTree

_NODES_LIMIT = 10_000
_GREATEST, _LEAST = 1e6, 1e-6


@contextmanager
def reproducible(*entropy: int) -> Iterator[None]:
    """Seed the global `random` from non-negative integers, and restore its state at the end.

    The stream depends on nothing but these numbers, so no generator's state needs saving.
    """
    before = random.getstate()
    words = numpy.random.SeedSequence(entropy).generate_state(4)
    random.seed(int.from_bytes(words.astype("<u4").tobytes(), "little"))
    try:
        yield
    finally:
        random.setstate(before)


def half_and_half(
    language: Language, least: int, greatest: int, type_: type | None = None
) -> list[gp.Primitive | gp.Terminal]:
    """Draw a random tree of a height in `[least, greatest]`: half grown, half full (Koza 1992).

    As `deap.gp.genHalfAndHalf`, save that a type without primitives (a `Constant`) gets a
    terminal, and one without terminals a primitive, where DEAP raises IndexError.

    Args:
        language: what the tree is made of.
        least: smallest height.
        greatest: greatest height.
        type_: of the root; by default the language's.

    Returns:
        The nodes in depth-first order.

    Raises:
        GppruneError: nothing ends a tree of some type.
    """
    full = random.random() < 0.5
    height = random.randint(least, greatest)
    nodes: list[gp.Primitive | gp.Terminal] = []
    stack = [(0, type_ or language.root)]
    while stack:
        depth, wanted = stack.pop()
        ends = depth >= height or (
            not full and depth >= least and random.random() < language.pset.terminalRatio
        )
        choices = _choices(language, wanted, ends)
        if not choices or len(nodes) > _NODES_LIMIT:
            raise GppruneError(
                f"the language {language.name!r} has nothing of type {wanted.__name__} that ends"
                " a formula: give it a terminal of that type"
            )
        node = random.choice(choices)
        if isinstance(node, gp.MetaEphemeral):
            node = node()  # draws the constant
        nodes.append(node)
        if node.arity:
            stack.extend((depth + 1, argument) for argument in reversed(node.args))
    return nodes


def _choices(
    language: Language, wanted: type, ends: bool
) -> list[gp.Primitive | gp.Terminal] | None:
    """What may stand where a type is wanted: terminals where the tree ends, else primitives."""
    pset = language.pset
    # .get: DEAP's dictionaries would grow a new entry on [].
    terminals, primitives = pset.terminals.get(wanted), pset.primitives.get(wanted)
    return (terminals or _closing(pset, wanted)) if ends else (primitives or terminals)


def _closing(pset: gp.PrimitiveSetTyped, wanted: type) -> list[gp.Primitive]:
    """The primitives of a type that terminals can complete, or all of them if there are none."""
    primitives = pset.primitives.get(wanted) or []
    closing = [p for p in primitives if all(pset.terminals.get(a) for a in p.args)]
    return closing or primitives


def slots(tree: Tree, language: Language) -> list[type]:
    """Return, for each node, the type that its parent takes there: what may stand in its place."""
    wanted: list[type] = []
    stack = [language.root]
    for node in tree:
        wanted.append(stack.pop())
        if node.arity:
            stack.extend(reversed(node.args))
    return wanted


def drawn(type_: type, language: Language) -> bool:
    """Whether the language can draw something of a type."""
    pset = language.pset
    return bool(pset.terminals.get(type_) or pset.primitives.get(type_))


def is_constant(type_: type, language: Language) -> bool:
    """Whether nothing but ephemeral constants is of a type."""
    ends = language.pset.terminals.get(type_, [])
    return bool(ends) and all(isinstance(end, gp.MetaEphemeral) for end in ends)


def constants(tree: Tree) -> list[int]:
    """Which nodes are constants."""
    return [i for i, node in enumerate(tree) if isinstance(type(node), gp.MetaEphemeral)]


def rounded(value: float) -> float:
    """A constant as variation makes it: two digits keep formulas readable, and let near-equal
    ones meet in the archive.
    """
    size = min(max(abs(value), _LEAST), _GREATEST)
    return float(f"{math.copysign(size, value):.2g}")
