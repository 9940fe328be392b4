"""Children of two trees.

DEAP's own operators pick a replacement by the type of the node that goes, so that an `X` in
`mul(abs(W), X)`, an `Inputs`, could never become a `sqrt(G)`, an `Elements`, though `mul` would
take it. `graft` and `join` go by what the parent node takes and so reach every typed tree.
"""

from __future__ import annotations

import random

from deap import gp

from gpprune.gp.variation.mutation import tempered
from gpprune.gp.variation.trees import Tree, constants, is_constant, slots
from gpprune.primitives import Language, Node, word


def cross(first: Tree, second: Tree, language: Language) -> Tree:
    """Return a child of two trees: DEAP's one-point crossover, a `graft` or a `join`, evenly.

    Args:
        first: one parent. It stays as it is.
        second: the other parent. It stays as it is.
        language: of both.
    """
    draw = random.randrange(3)
    if draw == 0:
        child, _ = gp.cxOnePoint(Tree(first), Tree(second))
        return child
    return (graft if draw == 1 else join)(Tree(first), second, language)


def graft(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Replace a random subtree by a random one of another tree that fits its slot, if any does.

    Args:
        tree: is changed and returned.
        donor: gives the subtree, and stays as it is.
        language: of both.
    """
    index = random.randrange(len(tree))
    wanted = slots(tree, language)[index]
    fitting = [i for i, node in enumerate(donor) if issubclass(node.ret, wanted)]
    if fitting:
        tree[tree.searchSubtree(index)] = donor[donor.searchSubtree(random.choice(fitting))]
    return tree


def join(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Combine the tree, or a random subtree, with a random subtree of another by a primitive.

    Replacement alone must lose a factor to gain one; this is how `|W|*X` and `W^2*G` meet.

    Args:
        tree: is changed and returned.
        donor: gives the other part, and stays as it is.
        language: of both.
    """
    index = _joined_place(tree, language)
    wanted = slots(tree, language)[index]
    place = tree.searchSubtree(index)
    pair = [list(tree[place]), _joined_part(donor, wanted, language)]
    random.shuffle(pair)
    fitting = [
        primitive
        for primitive in _joining([*tree, *donor], wanted, language)
        if issubclass(primitive.ret, wanted)
        and all(issubclass(s[0].ret, a) for s, a in zip(pair, primitive.args, strict=True))
    ]
    if fitting:
        tree[place] = [random.choice(fitting), *pair[0], *pair[1]]
    return tree


def _joined_place(tree: Tree, language: Language) -> int:
    """Draw the node that a join is to combine with another: the root half of the time."""
    index = 0 if random.random() < 0.5 else random.randrange(len(tree))
    if index == 0 and not _joins_whole(language):
        index = random.randrange(1, len(tree))
    return index


def _joined_part(donor: Tree, wanted: type, language: Language) -> list[Node]:
    """Draw a subtree that a primitive of a type may take."""
    kinds = _joined_types(wanted, language)
    # a number joins only where it could stand alone: added to a profile it says nothing
    alone = any(isinstance(t, gp.MetaEphemeral) for t in language.pset.terminals.get(wanted, []))
    numbers = set() if alone else set(constants(donor))
    parts = [i for i, node in enumerate(donor) if issubclass(node.ret, kinds) and i not in numbers]
    return list(donor[donor.searchSubtree(random.choice(parts or range(len(donor))))])


def _joining(nodes: list[Node], wanted: type, language: Language) -> list[gp.Primitive]:
    """Binary primitives: the parents' own, as often as they use them, and any other of the type.

    The other is one draw, so that it is chosen now and then.
    """
    of_type = language.pset.primitives.get(wanted) or language.pset.primitives[language.root]
    return [node for node in (*nodes, random.choice(of_type)) if node.arity == 2]


def merge(tree: Tree, donor: Tree, language: Language) -> Tree:
    """Combine two whole trees: blend them, or join them by a primitive, as often each.

    A blend is `w x + (1 - w) y`, the geometric crossover of Moraglio, Krawiec and Johnson 2012
    (Geometric Semantic Genetic Programming): of two good allocations the ones between them are
    seldom bad. Before a primitive joins them, each is given a constant half of the time.

    Where no primitive takes two whole formulas (a metric with its allocation), one of the root's
    arguments is merged with the donor's.

    Args:
        tree: is changed and returned.
        donor: the other tree, which stays as it is.
        language: of both.
    """
    mine, theirs = _merged_places(tree, donor, language)
    wanted = slots(tree, language)[mine.start]
    parts = [Tree(tree[mine]), Tree(donor[theirs])]
    merged = _blended(parts[0], parts[1], wanted, language) if random.random() < 0.5 else None
    if merged is None:
        merged = _combined(parts, wanted, language)
    if merged is not None:
        tree[mine] = merged
    return tree


def _merged_places(tree: Tree, donor: Tree, language: Language) -> tuple[slice, slice]:
    """The parts of two trees that a merge combines."""
    if _joins_whole(language):
        return slice(0, len(tree)), slice(0, len(donor))
    which = random.randrange(tree[0].arity)
    return _argument(tree, which), _argument(donor, which)


def _combined(parts: list[Tree], wanted: type, language: Language) -> list[Node] | None:
    """Two trees, each with a constant or without, under a primitive; None if there is none."""
    tempers = [
        tempered(part, 0, wanted, language) if random.random() < 0.5 else part for part in parts
    ]
    closed = [
        p
        for p in language.pset.primitives[wanted]
        if p.arity == 2 and all(issubclass(wanted, argument) for argument in p.args)
    ]
    return [random.choice(closed), *tempers[0], *tempers[1]] if closed else None


def _blended(x: Tree, y: Tree, wanted: type, language: Language) -> list[Node] | None:
    """The sum of two trees with weights that add up to 1, None where the language has none."""
    known = {word(p.name): p for p in language.pset.primitives.get(wanted, []) if p.arity == 2}
    add, times = known.get("add"), known.get("mul")
    if add is None or times is None or not is_constant(times.args[0], language):
        return None
    weight = round(random.uniform(0.1, 0.9), 2)
    shares = language.constant(weight), language.constant(round(1 - weight, 2))
    return [add, times, shares[0], *x, times, shares[1], *y]


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


def _joins_whole(language: Language) -> bool:
    """Whether some primitive combines two whole trees."""
    return issubclass(language.root, _joined_types(language.root, language))
