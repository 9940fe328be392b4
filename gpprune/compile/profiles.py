"""An allocation as numbers: one value a unit, from reductions that something else computes.

The tree is evaluated bottom up. What is element-wise is only gathered, as a metric's formula,
until a reduction wants it; the reduction is asked of a `Reducer`, which knows the model and
remembers what it was asked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gpprune.errors import Unfit
from gpprune.primitives import METRIC, Formula, Node, UnitPrimitive, fold
from gpprune.primitives.nodes import kind
from gpprune.primitives.types import Elements
from gpprune.primitives.units.functions import Layout, OnFlat, OnUnits


class Reducer(Protocol):
    """What turns element-wise formulas into one number a unit."""

    @property
    def layout(self) -> Layout:
        """The units."""

    @property
    def terminals(self) -> Mapping[str, Tensor]:
        """`depth`, `fan_in`, `fan_out` and `size`, each `[units]`, float64."""

    def reduced(
        self, reduction: UnitPrimitive, elements: Formula, numbers: tuple[float, ...]
    ) -> Tensor:
        """A reduction of the scores of each unit's weights.

        Args:
            reduction: one of those that take weights, such as the mean.
            elements: a metric's formula, which scores the weights.
            numbers: the constants that the reduction takes after them.

        Returns:
            `[units]`, float64.
        """

    def dsa(self, chain: Sequence[UnitPrimitive], elements: Formula) -> Tensor:
        """`[units]`, float64: the importances of DSA's operators in this order."""


@dataclass(frozen=True)
class _Elements:
    """An element-wise subtree, as nodes of a metric in prefix order."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Flat:
    """DSA's operators so far, and what they are applied to."""

    chain: tuple[UnitPrimitive, ...]
    elements: Formula


_Value = Tensor | _Elements | _Flat


def profile(allocation: Formula, metric: Formula, reducer: Reducer) -> Tensor:
    """Evaluate an allocation.

    Args:
        allocation: of the `ALLOCATION` language.
        metric: whose scores `S` stands for, as they are (no rank form).
        reducer: computes its reductions.

    Returns:
        `[units]`, float64: how much sparser each unit is than others, in shares of its weights.

    Raises:
        Unfit: a value that is not finite, which a published notation can make.
    """

    def visit(node: Any, arguments: list[_Value]) -> _Value:
        if not node.arity:
            return _leaf(node, metric, reducer)
        entry = allocation.language.primitives[node.name]
        if not isinstance(entry, UnitPrimitive):
            nodes = (part for argument in arguments for part in _nodes(argument))
            return _Elements((METRIC.nodes[node.name], *nodes))
        return _apply(entry, arguments, reducer)

    value = fold(allocation.tree, visit)
    if isinstance(value, _Elements):  # a number alone
        value = torch.zeros((), dtype=torch.float64)
    if not isinstance(value, Tensor):
        raise Unfit(f"{allocation.text} gives no number a unit")
    value = value.expand(len(reducer.layout.sizes))
    if not torch.isfinite(value).all():
        raise Unfit(f"{allocation.text} gives a unit a value that is not finite")
    return value


def _leaf(node: Any, metric: Formula, reducer: Reducer) -> _Value:
    if kind(node) == "constant":
        return _Elements((METRIC.constant(node.value),))
    if node.value == "S":
        return _Elements(tuple(metric.tree))
    if issubclass(node.ret, Elements):
        return _Elements((METRIC.nodes[node.value],))
    return reducer.terminals[node.value]


def _nodes(value: _Value) -> tuple[Node, ...]:
    if not isinstance(value, _Elements):
        raise TypeError("a number a unit stands where weights are needed")
    return value.nodes


def _number(value: _Value) -> Tensor:
    """A unit's value; a constant, gathered as an element-wise node, is a number here."""
    if isinstance(value, _Elements):
        return torch.tensor(float(value.nodes[0].value), dtype=torch.float64)
    if isinstance(value, _Flat):
        raise TypeError("DSA's operators have not ended in an importance")
    return value


def _read(elements: Formula) -> Formula:
    """What DSA's operators are applied to.

    They keep their code's float32, in which the variance of a constant is rounding that differs
    with a unit's size: scaled to a range it would be an allocation.
    """
    if not elements.names:
        raise Unfit(f"dsa_scores({elements.text}) is a constant: it tells no units apart")
    return elements


def _apply(entry: UnitPrimitive, arguments: list[_Value], reducer: Reducer) -> _Value:
    first = arguments[0]
    match entry.lowering:
        case OnUnits(apply, model):
            shape = reducer.layout.sizes.shape  # a constant is the same for every unit
            values = [_number(argument).expand(shape) for argument in arguments]
            return apply(*values, *([reducer.layout] if model else []))
        case OnFlat():
            if not isinstance(first, _Flat):
                raise TypeError(f"{entry.name} is for DSA's vectors")
            return _Flat((*first.chain, entry), first.elements)
        case None if isinstance(first, _Flat):  # dsa_importance
            return reducer.dsa(first.chain, first.elements)
        case None:  # dsa_scores
            return _Flat((), _read(Formula(_nodes(first), METRIC)))
    numbers = tuple(float(_number(argument)) for argument in arguments[1:])
    return reducer.reduced(entry, Formula(_nodes(first), METRIC), numbers)
