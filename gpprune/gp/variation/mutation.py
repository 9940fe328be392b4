"""Changes of one tree.

`regrow` goes by what the parent node takes, where DEAP's operators go by the type of the node that
was there.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TypeAlias

from deap import gp

from gpprune.gp.variation.trees import (
    Tree,
    constants,
    drawn,
    half_and_half,
    is_constant,
    rounded,
    slots,
)
from gpprune.primitives import Language

Mutation: TypeAlias = Callable[[Tree, Language], Tree]

_SIGN_FLIP = 0.1
_SPREAD = 0.4
_TEMPER = 0.7
_TUNING = 0.25


def mutate(tree: Tree, language: Language) -> tuple[Tree, str]:
    """Return a mutated copy of a tree and the name of the mutation, drawn from `MUTATIONS`.

    The copy may equal the tree where the mutation finds nothing to change.
    """
    names = [name for name in MUTATIONS if name != "constant" or constants(tree)]
    name = random.choice(names)
    return MUTATIONS[name](Tree(tree), language), name


def tune(tree: Tree, language: Language) -> Tree:
    """Move every constant of a tree by a small random factor; give one to a tree without any."""
    places = constants(tree)
    if not places:
        return _temper(tree, language)
    for index in places:
        value = tree[index].value * math.exp(random.gauss(0.0, _TUNING))
        tree[index] = language.constant(rounded(value))
    return tree


def _uniform(tree: Tree, language: Language) -> Tree:
    # as DEAP's mutUniform, save for what only formula text may use (a DSA graph's inside)
    places = [at for at, node in enumerate(tree) if drawn(node.ret, language)]
    at = random.choice(places)
    tree[tree.searchSubtree(at)] = half_and_half(language, 0, 2, tree[at].ret)
    return tree


def _regrow(tree: Tree, language: Language) -> Tree:
    """Replace a random subtree by a random tree of any type that its slot takes."""
    index = random.randrange(len(tree))
    wanted = slots(tree, language)[index]
    if drawn(wanted, language):
        tree[tree.searchSubtree(index)] = half_and_half(language, 0, 2, wanted)
    return tree


def _replace(tree: Tree, language: Language) -> Tree:
    before = Tree(tree)
    try:
        (mutant,) = gp.mutNodeReplacement(tree, language.pset)
    except IndexError:  # a primitive that only published formulas use has no alternatives
        return before
    return mutant


def _insert(tree: Tree, language: Language) -> Tree:
    before = Tree(tree)
    try:
        (mutant,) = gp.mutInsert(tree, language.pset)
    except IndexError:  # a new argument's type has no terminals
        return before
    return mutant


def _shrink(tree: Tree, language: Language) -> Tree:
    (mutant,) = gp.mutShrink(tree)
    return mutant


def _constant(tree: Tree, language: Language) -> Tree:
    """Scale a random constant by a log-normal factor, now and then turning its sign."""
    index = random.choice(constants(tree))
    value = (tree[index].value or 1.0) * math.exp(random.gauss(0.0, _SPREAD))
    if random.random() < _SIGN_FLIP:
        value = -value
    tree[index] = language.constant(rounded(value))
    return tree


def _temper(tree: Tree, language: Language) -> Tree:
    """Wrap a random subtree in a primitive with a constant, such as a power near 1."""
    index = random.randrange(len(tree))
    return tempered(tree, index, slots(tree, language)[index], language)


def tempered(tree: Tree, index: int, wanted: type, language: Language) -> Tree:
    """Wrap a subtree in a primitive with a constant, if the language has one for it.

    Args:
        tree: is changed and returned.
        index: the subtree's root.
        wanted: what its slot takes.
        language: of the tree.
    """
    place = tree.searchSubtree(index)
    wrapping = [
        p
        for p in language.pset.primitives.get(wanted, [])
        if p.arity == 2
        and any(_tempers(tree[index].ret, pair, language) for pair in (p.args, p.args[::-1]))
    ]
    if wrapping:
        value = float(f"{math.exp(random.gauss(0.0, _TEMPER)):.2g}")
        primitive = random.choice(wrapping)
        parts = [tree[place], [language.constant(value)]]
        if not _tempers(tree[index].ret, primitive.args, language):
            parts.reverse()
        tree[place] = [primitive, *parts[0], *parts[1]]
    return tree


def _tempers(found: type, pair: list[type], language: Language) -> bool:
    """Whether a subtree can be the first of two arguments whose second is a constant."""
    return issubclass(found, pair[0]) and is_constant(pair[1], language)


MUTATIONS: dict[str, Mutation] = {
    "uniform": _uniform,
    "regrow": _regrow,
    "replace": _replace,
    "insert": _insert,
    "shrink": _shrink,
    "constant": _constant,
    "temper": _temper,
}
"""Every mutation by the name that an outcome's origin shows."""
