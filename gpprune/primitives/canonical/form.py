"""The canonical form: formulas that always give the same mask become one formula.

Two levels. The *value* form applies algebra that keeps every score (commutativity, like terms and
powers, Pruner-Zero's opposing pairs such as exp/log and sqrt/sqr, invariances of the
normalisations). The *rank* form keeps only the order of scores inside a comparison group: it
strips outer strictly increasing functions, positive factors and terms that are constant inside
the group, and a common power. Over a whole model only numbers are constant: what a layer's
reductions give is another number in the next. A factor that is zero for a whole group is treated as
positive: scores that are all equal carry no order to lose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from gpprune.primitives.canonical.atoms import LAYER, Sum
from gpprune.primitives.canonical.ranking import ranked
from gpprune.primitives.canonical.rules import normal
from gpprune.primitives.canonical.unit_rules import UNIT, of_units, only_differences
from gpprune.primitives.nodes import Node, fold
from gpprune.primitives.types import Joint, Units, axes_of
from gpprune.primitives.units.table import UNIT_PRIMITIVES
from gpprune.primitives.weights.table import PRIMITIVES

# The axes along which nothing varies inside a comparison group.
_GROUPS: dict[str, frozenset[str]] = {
    "row": LAYER | {"out"},
    "layer": LAYER,
    "model": frozenset(),
}


def canonical_text(nodes: Sequence[Node], group: str | None) -> str:
    """Formula text of the canonical form of a tree; see `Formula.canonical`."""
    if group is not None and group not in _GROUPS:
        raise ValueError(f"unknown comparison group {group!r}; there are {sorted(_GROUPS)}")
    if nodes[0].ret is Joint:
        return _joint_text(nodes, group)
    value, _ = fold(nodes, _typed)
    if group is None:
        return value.text
    if issubclass(nodes[0].ret, Units):
        return only_differences(value).text
    return ranked(value, _GROUPS[group]).text


def _joint_text(nodes: Sequence[Node], group: str | None) -> str:
    """A joint formula's parts in their forms.

    Where the allocation reads the scores, their values matter and not their order alone.
    """
    end = 1
    open_ = 1
    while open_:
        open_ += nodes[end].arity - 1
        end += 1
    allocation = canonical_text(nodes[end:], group)
    reads = re.search(r"\bS\b", allocation) is not None
    metric = canonical_text(nodes[1:end], None if reads else group)
    return f"{nodes[0].name}({metric}, {allocation})"


class IrreducibleError(Exception):
    """The formula means something that its canonical form would not."""


def _typed(node: Any, below: list[tuple[Sum, frozenset[str]]]) -> tuple[Sum, frozenset[str]]:
    """A node's normal form, and the axes that its tree, unsimplified, varies along.

    Pruner-Zero's norms and z-scores are over the shape that their arguments happen to have, so
    they bar an algebra that changes it: `pz_zsn(add(X, sub(W, W)))` is not `pz_zsn(X)`.
    """
    values = [value for value, _ in below]
    if not node.arity:
        return normal(node, values), axes_of(node.ret)
    if node.name in UNIT_PRIMITIVES:
        return of_units(UNIT_PRIMITIVES[node.name], values), UNIT
    lowering = PRIMITIVES[node.name].lowering
    axes = _union(found for _, found in below)
    by_shape = any(reduction.over == "arguments" for reduction in lowering.reductions)
    if by_shape and axes != _union(value.axes for value in values) - LAYER:
        raise IrreducibleError
    if lowering.apply is None:
        axes -= lowering.reductions[0].axes
    else:
        axes = _union(below[at][1] for at in lowering.reads if at < len(below))
    return normal(node, values), axes


def _union(found: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*found)
