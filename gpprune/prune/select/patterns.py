"""The sparsity patterns, each an entry of a table, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune.select.arrangements import (
    Misfit,
    column_bands,
    each_row,
    from_column_bands,
    groups_of,
    row_bands,
    whole,
)
from gpprune.prune.select.pattern import Pattern
from gpprune.tables import Table


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


FREE = "free"
EXPERTS = "experts"
_UNITS = {"mlp": "hidden", "heads": "heads"}


def _unit_pattern(match: re.Match[str]) -> Pattern:
    names = sorted(set(match[0].split(",")), key=list(_UNITS).index)
    kinds = tuple(_UNITS[name] for name in names)
    return Pattern(",".join(names), None, _in_several_layers, across=True, units=kinds)


def _free_pattern(match: re.Match[str]) -> Pattern:
    return Pattern("free", None, _in_several_layers, across=True, units=(FREE,))


def _expert_pattern(match: re.Match[str]) -> Pattern:
    return Pattern("experts", None, _in_several_layers, across=True, units=(EXPERTS,))


def _in_several_layers(scores: Tensor) -> Tensor:
    raise Misfit("what competes lies in several layers, so that a model is pruned by it, no layer")


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
        PatternForm(
            "units",
            "mlp, heads or mlp,heads",
            "MLP channels, or heads with the queries that share them, compete across the model",
            r"(?:mlp|heads)(?:,(?:mlp|heads))*",
            _unit_pattern,
        ),
        PatternForm(
            "free",
            "free",
            "rows and columns of all matrices compete, each free of the others",  # LLM Surgeon's
            r"free",
            _free_pattern,
        ),
        PatternForm(
            "experts",
            "experts",
            "the experts of a mixture compete, and as many of each block are taken out",
            r"experts",
            _expert_pattern,
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
