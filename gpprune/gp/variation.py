"""How formulas arise and change: random trees, crossovers and mutations, on DEAP's trees.

DEAP draws from the global `random`. `seeded` is the one place that seeds it and gives it back
untouched; everything here must run inside it.

DEAP's own operators pick a replacement by the type of the node that goes, so that an `X` in
`mul(abs(W), X)`, an `Inputs`, could never become a `sqrt(G)`, an `Elements`, though `mul` would
take it. `graft`, `join` and `regrow` go by what the parent node takes and so reach every typed
tree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy
from deap import gp

from gpprune.errors import GppruneError
from gpprune.primitives import Language, Node, word

Tree: TypeAlias = gp.PrimitiveTree
Mutation: TypeAlias = Callable[[Tree, Language], Tree]

_NODES_LIMIT = 10_000
_SIGN_FLIP = 0.1
_SPREAD = 0.4
_TEMPER = 0.7
_TUNING = 0.25
_GREATEST, _LEAST = 1e6, 1e-6


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
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
    terminal, and one without terminals a primitive, where DEAP raises IndexError. Returns the
    nodes in depth-first order. Raises `GppruneError` for a type that nothing ends.
    """
    pset = language.pset
    full = random.random() < 0.5
    height = random.randint(least, greatest)
    nodes: list[gp.Primitive | gp.Terminal] = []
    stack = [(0, type_ or language.root)]
    while stack:
        depth, wanted = stack.pop()
        # .get: DEAP's dictionaries would grow a new entry on [].
        terminals, primitives = pset.terminals.get(wanted), pset.primitives.get(wanted)
        ends = depth >= height or (
            not full and depth >= least and random.random() < pset.terminalRatio
        )
        choices = (terminals or _closing(pset, wanted)) if ends else (primitives or terminals)
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


def cross(first: Tree, second: Tree, language: Language) -> Tree:
    """Return a child of two trees: DEAP's one-point crossover, a `graft` or a `join`, evenly."""
    draw = random.randrange(3)
    if draw == 0:
        child, _ = gp.cxOnePoint(Tree(first), Tree(second))
        return child
    return (graft if draw == 1 else join)(Tree(first), second, language)


def graft(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Replace a random subtree by a random one of `donor` that fits its slot, if any does."""
    index = random.randrange(len(tree))
    wanted = slots(tree, language)[index]
    fitting = [i for i, node in enumerate(donor) if issubclass(node.ret, wanted)]
    if fitting:
        tree[tree.searchSubtree(index)] = donor[donor.searchSubtree(random.choice(fitting))]
    return tree


def join(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Combine the tree, or a random subtree, with a random subtree of `donor` by a primitive.

    Replacement alone must lose a factor to gain one; this is how `|W|*X` and `W^2*G` meet.
    """
    index = 0 if random.random() < 0.5 else random.randrange(len(tree))
    if index == 0 and not issubclass(language.root, _joined_types(language.root, language)):
        index = random.randrange(1, len(tree))  # no primitive combines two whole trees
    wanted = slots(tree, language)[index]
    place = tree.searchSubtree(index)
    kinds = _joined_types(wanted, language)
    # a number joins only where it could stand alone: added to a profile it says nothing
    alone = any(isinstance(t, gp.MetaEphemeral) for t in language.pset.terminals.get(wanted, []))
    parts = [
        i
        for i, node in enumerate(donor)
        if issubclass(node.ret, kinds) and (alone or not isinstance(type(node), gp.MetaEphemeral))
    ]
    part = donor[donor.searchSubtree(random.choice(parts or range(len(donor))))]
    pair = [list(tree[place]), list(part)]
    random.shuffle(pair)
    # the parents' own primitives, as often as they use them, and any other now and then
    choices = [node for node in (*tree, *donor) if node.arity == 2]
    of_type = language.pset.primitives.get(wanted) or language.pset.primitives[language.root]
    choices.append(random.choice(of_type))
    fitting = [
        p
        for p in choices
        if p.arity == 2
        and issubclass(p.ret, wanted)
        and all(issubclass(s[0].ret, a) for s, a in zip(pair, p.args, strict=True))
    ]
    if fitting:
        tree[place] = [random.choice(fitting), *pair[0], *pair[1]]
    return tree


def merge(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Combine two whole trees: blend them, or join them by a primitive, as often each.

    A blend is `w x + (1 - w) y`, the geometric crossover of Moraglio, Krawiec and Johnson 2012
    (Geometric Semantic Genetic Programming): of two good allocations the ones between them are
    seldom bad. Before a primitive joins them, each is given a constant half of the time.

    Where no primitive takes two whole formulas (a metric with its allocation), one of the root's
    arguments is merged with the donor's.
    """
    if issubclass(language.root, _joined_types(language.root, language)):
        mine, theirs = slice(0, len(tree)), slice(0, len(donor))
    else:
        which = random.randrange(tree[0].arity)
        mine, theirs = _argument(tree, which), _argument(donor, which)
    wanted = slots(tree, language)[mine.start]
    parts = [Tree(tree[mine]), Tree(donor[theirs])]
    blended = _blended(parts[0], parts[1], wanted, language) if random.random() < 0.5 else None
    if blended is not None:
        tree[mine] = blended
        return tree
    for at, part in enumerate(parts):
        if random.random() < 0.5:
            parts[at] = _tempered(part, 0, wanted, language)
    closed = [
        p
        for p in language.pset.primitives[wanted]
        if p.arity == 2 and all(issubclass(wanted, argument) for argument in p.args)
    ]
    if closed:
        tree[mine] = [random.choice(closed), *parts[0], *parts[1]]
    return tree


def _blended(x: Tree, y: Tree, wanted: type, language: Language) -> list[Node] | None:
    """The sum of two trees with weights that add up to 1, None where the language has none."""
    known = {word(p.name): p for p in language.pset.primitives.get(wanted, []) if p.arity == 2}
    add, times = known.get("add"), known.get("mul")
    if add is None or times is None or not _is_constant(times.args[0], language):
        return None
    weight = round(random.uniform(0.1, 0.9), 2)
    shares = language.constant(weight), language.constant(round(1 - weight, 2))
    return [add, times, shares[0], *x, times, shares[1], *y]


def tune(tree: Tree, language: Language) -> Tree:
    """Move every constant of a tree by a small random factor; give one to a tree without any."""
    places = _constants(tree)
    if not places:
        return _temper(tree, language)
    for index in places:
        value = tree[index].value * math.exp(random.gauss(0.0, _TUNING))
        tree[index] = language.constant(_rounded(value))
    return tree


def _rounded(value: float) -> float:
    """A constant as variation makes it: two digits keep formulas readable, and let near-equal
    ones meet in the archive.
    """
    size = min(max(abs(value), _LEAST), _GREATEST)
    return float(f"{math.copysign(size, value):.2g}")


def _argument(tree: Tree, which: int) -> slice:
    """Where an argument of the root lies."""
    place: slice = tree.searchSubtree(1)
    for _ in range(which):
        place = tree.searchSubtree(place.stop)
    return place


def _joined_types(wanted: type, language: Language) -> tuple[type, ...]:
    """What binary primitives of a type take."""
    pairs = [p.args for p in language.pset.primitives.get(wanted, []) if p.arity == 2]
    return tuple({argument for pair in pairs for argument in pair})


def mutate(tree: Tree, language: Language) -> tuple[Tree, str]:
    """Return a mutated copy of a tree and the name of the mutation, drawn from `MUTATIONS`.

    The copy may equal the tree where the mutation finds nothing to change.
    """
    names = [name for name in MUTATIONS if name != "constant" or _constants(tree)]
    name = random.choice(names)
    return MUTATIONS[name](Tree(tree), language), name


def _uniform(tree: Tree, language: Language) -> Tree:
    # as DEAP's mutUniform, save for what only formula text may use (a DSA graph's inside)
    places = [at for at, node in enumerate(tree) if _drawn(node.ret, language)]
    at = random.choice(places)
    tree[tree.searchSubtree(at)] = half_and_half(language, 0, 2, tree[at].ret)
    return tree


def _drawn(type_: type, language: Language) -> bool:
    """Whether the language can draw something of a type."""
    pset = language.pset
    return bool(pset.terminals.get(type_) or pset.primitives.get(type_))


def _regrow(tree: Tree, language: Language) -> Tree:
    """Replace a random subtree by a random tree of any type that its slot takes."""
    index = random.randrange(len(tree))
    wanted = slots(tree, language)[index]
    if _drawn(wanted, language):
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
    index = random.choice(_constants(tree))
    value = (tree[index].value or 1.0) * math.exp(random.gauss(0.0, _SPREAD))
    if random.random() < _SIGN_FLIP:
        value = -value
    tree[index] = language.constant(_rounded(value))
    return tree


def _temper(tree: Tree, language: Language) -> Tree:
    """Wrap a random subtree in a primitive with a constant, such as a power near 1."""
    index = random.randrange(len(tree))
    return _tempered(tree, index, slots(tree, language)[index], language)


def _tempered(tree: Tree, index: int, wanted: type, language: Language) -> Tree:
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
    return issubclass(found, pair[0]) and _is_constant(pair[1], language)


def _is_constant(type_: type, language: Language) -> bool:
    """Whether nothing but ephemeral constants is of a type."""
    ends = language.pset.terminals.get(type_, [])
    return bool(ends) and all(isinstance(end, gp.MetaEphemeral) for end in ends)


def _constants(tree: Tree) -> list[int]:
    return [i for i, node in enumerate(tree) if isinstance(type(node), gp.MetaEphemeral)]


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
