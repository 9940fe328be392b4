"""A sparsity pattern: how a layer's scores are arranged into groups that compete, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import torch
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.select.arrangements import Misfit, reshaped


def check_sparsity(sparsity: float) -> None:
    """See that a sparsity lies in ``[0, 1)``.

    Raises:
        UsageError: it does not, or is not a number.
    """
    if not 0.0 <= sparsity < 1.0:
        raise UsageError(f"the sparsity {sparsity} lies outside [0, 1): give a share such as 0.5")


def pruned_count(sparsity: float, size: int) -> int:
    """``floor(sparsity * size)``, of the decimal number that ``sparsity`` was written as.

    In binary ``0.29 * 100`` is 28.999...; whoever asks for 29 % of 100 weights means 29.
    """
    return math.floor(Decimal(repr(float(sparsity))) * size)


@dataclass(frozen=True)
class Pattern:
    """A shape of sparsity: which weights compete, and how many of them go.

    `arrange` and `restore` say all of it; masks of a sparsity, exact counts, budgets and the check
    of a layer's shape follow from them.

    Attributes:
        text: how it is written: ``"row"``, ``"rows:16"``, ``"layer"``, ``"2:4"``.
        group: what holds its comparison groups of scores, ``"row"``, ``"layer"`` or ``"model"``,
            if only their order inside it matters: a formula may be reduced to that order before it
            is compiled. None if their values matter, as where a group's members are sums of scores.
        arrange: from scores ``[out, in]`` to those that compete, ``[groups, width]``: the lowest
            of each row go. A pattern of whole columns or rows gives each of them one score, and
            its members are then as many weights each. Raises `Misfit` for a shape that it cannot
            arrange. It is also called with a tensor without values, to learn the groups' shape.
        restore: from ``chosen``, bool ``[groups, width]``, and the layer's shape to bool
            ``[out, in]``; by default as a reshaping `arrange` has it.
        sparsity: the sparsity that the pattern itself implies, or None.
        even: whether every group gives up as many as every other.
        across: whether the scores of all layers compete under one threshold: how many of a layer
            go, the scores say. `arrange` then makes one group of a layer.
        units: the kinds of coupled axis whose units compete, across the model; empty: weights do.
            No layer can be arranged alone then.
    """

    text: str
    group: str | None
    arrange: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor, Sequence[int]], Tensor] = reshaped
    sparsity: float | None = None
    even: bool = False
    across: bool = False
    units: tuple[str, ...] = ()

    def target(self, sparsity: float | None) -> float:
        """The sparsity to prune to, from the one asked for (None: what the pattern implies).

        Raises:
            UsageError: none is given or implied, it lies outside [0, 1), or the two disagree.
        """
        if sparsity is None:
            if self.sparsity is None:
                raise UsageError(f"the pattern {self.text!r} needs a sparsity, such as 0.5")
            return self.sparsity
        check_sparsity(sparsity)
        if self.sparsity is not None and not math.isclose(sparsity, self.sparsity, abs_tol=1e-9):
            raise UsageError(
                f"the pattern {self.text!r} prunes a share of {self.sparsity:g}, not "
                f"{sparsity:g}: leave the sparsity out, or choose another pattern"
            )
        return sparsity

    def count(self, sparsity: float, width: int) -> int:
        """How many of a group of ``width`` go at a sparsity that `target` has given."""
        if self.sparsity is not None:  # 4 of 7, and not the floor of 7 times 0.5714285714
            return round(self.sparsity * width)
        return pruned_count(sparsity, width)

    def groups(self, shape: Sequence[int]) -> int:
        """How many comparison groups a layer of ``[out, in]`` weights has."""
        return _arranged(self, tuple(shape))[0]

    def width(self, shape: Sequence[int]) -> int:
        """How many scores compete in each group of a layer of ``[out, in]`` weights."""
        return _arranged(self, tuple(shape))[1]

    def member(self, shape: Sequence[int]) -> int:
        """How many weights go with each score that competes: 1, but for structured patterns."""
        groups, width = _arranged(self, tuple(shape))
        return shape[0] * shape[1] // max(1, groups * width)

    def grain(self, shape: Sequence[int]) -> int:
        """A layer's zeros come in multiples of this."""
        return self.member(shape) * (self.groups(shape) if self.even else 1)

    def check_room(self, what: str) -> None:
        """See that the pattern lets layers differ in their sparsity.

        Args:
            what: would have them differ, for the error.

        Raises:
            UsageError: it prunes every layer alike, or says itself how they differ.
        """
        if self.across:
            raise UsageError(
                f"the pattern {self.text!r} shares the sparsity out by itself, so it has no room "
                f"for {what}: take another pattern, such as layer, or leave the sharing to it"
            )
        if self.sparsity is not None:
            size = self.text.rpartition(":")[2]
            raise UsageError(
                f"the pattern {self.text!r} prunes every layer alike, so it has no room for "
                f"{what}: take another pattern, such as N:{size}, or every layer the same"
            )

    def check_groups(self, what: str) -> None:
        """See that the pattern keeps N of M neighbours.

        Args:
            what: asks for it, for the error.

        Raises:
            UsageError: it is another.
        """
        if self.sparsity is None:
            raise UsageError(
                f"{what} is for a pattern such as 2:4, and this is {self.text!r}: leave it out, or "
                "take a pattern N:M"
            )

    def check_layer(self, name: str, shape: Sequence[int]) -> None:
        """See that the pattern fits a layer of ``[out, in]`` weights.

        Raises:
            UsageError: naming the layer that it does not fit.
        """
        try:
            _arranged(self, tuple(shape))
        except Misfit as error:
            raise UsageError(f"the pattern {self.text!r} does not fit {name}: {error}") from error

    def check_model(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """See that the pattern fits every layer of a model; one of units need not.

        Args:
            shapes: ``[out, in]`` of its linear layers by name.

        Raises:
            UsageError: naming the layer that it does not fit.
        """
        for name, shape in shapes.items() if not self.units else ():
            self.check_layer(repr(name), shape)


@lru_cache(maxsize=4096)
def _arranged(pattern: Pattern, shape: tuple[int, ...]) -> tuple[int, int]:
    """Groups and width of a layer's arranged scores: a search asks for each layer, again and again.

    Raises:
        Misfit: the pattern cannot arrange such a layer.
    """
    groups, width = pattern.arrange(torch.empty(shape, device="meta")).shape
    return groups, width
