"""Sparsity patterns: how a layer's scores are arranged into groups that compete, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial

import torch
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.select.arrangements import (
    Misfit,
    column_bands,
    each_row,
    from_column_bands,
    groups_of,
    reshaped,
    row_bands,
    whole,
)
from gpprune.tables import Table


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
    """

    text: str
    group: str | None
    arrange: Callable[[Tensor], Tensor]
    restore: Callable[[Tensor, Sequence[int]], Tensor] = reshaped
    sparsity: float | None = None
    even: bool = False
    across: bool = False

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

    def check_layer(self, name: str, shape: Sequence[int]) -> None:
        """See that the pattern fits a layer of ``[out, in]`` weights.

        Raises:
            UsageError: naming the layer that it does not fit.
        """
        try:
            _arranged(self, tuple(shape))
        except Misfit as error:
            raise UsageError(f"the pattern {self.text!r} does not fit {name}: {error}") from error


@lru_cache(maxsize=4096)
def _arranged(pattern: Pattern, shape: tuple[int, ...]) -> tuple[int, int]:
    """Groups and width of a layer's arranged scores: a search asks for each layer, again and again.

    Raises:
        Misfit: the pattern cannot arrange such a layer.
    """
    groups, width = pattern.arrange(torch.empty(shape, device="meta")).shape
    return groups, width


def _row_pattern(match: re.Match[str]) -> Pattern:
    return Pattern("row", "row", each_row)


def _layer_pattern(match: re.Match[str]) -> Pattern:
    return Pattern("layer", "layer", whole)


def _model_pattern(match: re.Match[str]) -> Pattern:
    return Pattern("model", "model", whole, across=True)


def _band_pattern(match: re.Match[str]) -> Pattern:
    rows = int(match[1])
    if rows < 1:
        raise UsageError(f"the pattern {match[0]!r} compares no rows: write rows:N with N from 1")
    return Pattern(f"rows:{rows}", "layer", partial(row_bands, rows))


def _column_band_pattern(match: re.Match[str]) -> Pattern:
    columns = int(match[1])
    if columns < 1:
        raise UsageError(
            f"the pattern {match[0]!r} compares no columns: write cols:N with N from 1"
        )
    arrange, restore = partial(column_bands, columns), partial(from_column_bands, columns)
    return Pattern(f"cols:{columns}", "layer", arrange, restore)


def _mixed_pattern(match: re.Match[str]) -> Pattern:
    size = int(match[1])
    if size < 2:
        raise UsageError(f"the pattern {match[0]!r} has groups of {size}: write N:M with M from 2")
    return Pattern(f"N:{size}", "row", partial(groups_of, size), even=True)


def _group_pattern(match: re.Match[str]) -> Pattern:
    kept, size = int(match[1]), int(match[2])
    if not 0 < kept <= size:
        raise UsageError(
            f"the pattern {match[0]!r} would keep {kept} of {size}: write N:M with N from 1 to M"
        )
    arrange, sparsity = partial(groups_of, size), 1 - kept / size
    return Pattern(f"{kept}:{size}", "row", arrange, sparsity=sparsity, even=True)


@dataclass(frozen=True)
class PatternForm:
    """A kind of pattern: an entry of `PATTERNS`.

    Attributes:
        name: what it is called.
        written: how it is written, with an example: what an error offers.
        about: which weights compete, and how many go.
        expression: the regular expression that its text matches as a whole.
        make: from the match to the pattern.
    """

    name: str
    written: str
    about: str
    expression: str
    make: Callable[[re.Match[str]], Pattern]


PATTERNS: Table[PatternForm] = Table(
    "pattern",
    (
        PatternForm(
            "row",
            "row",
            "an output neuron's weights compete; of each, floor(sparsity * in) go",  # Wanda's
            r"row",
            _row_pattern,
        ),
        PatternForm(
            "rows:N",
            "rows:N such as rows:16",
            "N consecutive output neurons' weights compete",
            r"rows:([0-9]{1,6})",
            _band_pattern,
        ),
        PatternForm(
            "cols:N",
            "cols:N such as cols:64",
            "a layer's weights within N consecutive input features compete",  # SparseGPT's, of 128
            r"cols:([0-9]{1,6})",
            _column_band_pattern,
        ),
        PatternForm("layer", "layer", "a layer's weights compete", r"layer", _layer_pattern),
        PatternForm(
            "model",
            "model",
            "all layers' weights compete; how many of each go, the scores say",
            r"model",
            _model_pattern,
        ),
        PatternForm(
            "N:M",
            "N:M such as 2:4",
            "M consecutive input features compete, and the N highest stay",
            r"([0-9]{1,4}):([0-9]{1,4})",
            _group_pattern,
        ),
        PatternForm(
            "N:8",
            "N:8 (another N in each layer)",
            "8 consecutive input features compete; how many go, the allocation says",
            r"N:([0-9]{1,4})",
            _mixed_pattern,
        ),
    ),
)
"""The kinds of pattern; a text is read by the first that it matches."""


def parse_pattern(text: str) -> Pattern:
    """The pattern written as ``"row"``, ``"rows:N"``, ``"layer"``, ``"N:M"`` or the like.

    Raises:
        UsageError: the text is no pattern of `PATTERNS`.
    """
    return _parsed(text, PATTERNS.revision)


@lru_cache(maxsize=64)
def _parsed(text: str, revision: int) -> Pattern:
    for form in PATTERNS.values():
        if match := re.fullmatch(form.expression, text):
            return form.make(match)
    known = ", ".join(form.written for form in PATTERNS.values())
    raise UsageError(f"there is no pattern {text!r}: choose from {known}")
