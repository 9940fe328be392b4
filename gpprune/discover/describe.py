"""Formulas as a person reads them: what they are called, simplified, and what prunes alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpprune.compile import render
from gpprune.discover.contenders import check_no_path
from gpprune.discover.runs import best_of, front_of
from gpprune.errors import UsageError
from gpprune.evals import Loss
from gpprune.files import expanded
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    METRIC,
    Formula,
    Language,
    allocation,
    metric,
    parse,
    parse_pruner_zero,
    word,
)
from gpprune.prune import MEASURERS


@dataclass(frozen=True)
class Description:
    """A formula under a name, and its figure where it has been judged."""

    name: str
    formula: Formula
    loss: Loss | None = None
    figure: float | None = None

    @property
    def simplified(self) -> Formula:
        """The canonical form that keeps every value."""
        return self.formula.canonical(None)

    @property
    def same_masks_as(self) -> Formula:
        """The canonical form that keeps the order of scores inside a layer."""
        return self.formula.canonical("layer")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        row = {
            "name": self.name,
            "formula": self.formula.text,
            "key": self.formula.key,
            "simplified_text": self.simplified.text,
            "same_masks_as": self.same_masks_as.text,
            "unicode": render(self.simplified, "line"),
            "latex": render(self.simplified, "latex"),
            "complexity": self.formula.complexity,
        }
        return row if self.loss is None else {**row, self.loss.figure: self.figure}


def describe_run(path: str | Path, top: int = 3, *, by_length: bool = False) -> list[Description]:
    """The best formulas that a run evolved.

    Args:
        path: its directory.
        top: how many.
        by_length: in their place all of the front of loss against length, seeds included: the best
            of each length or shorter, shortest first.

    Raises:
        UsageError: it is no run directory.
        GppruneError: nothing has been fully judged yet.
    """
    if by_length:
        loss, front = front_of(path)
        return [
            Description(
                f"{size} nodes: {outcome.origin}, generation {outcome.generation}",
                formula,
                loss,
                loss.shown(outcome.fitness),
            )
            for size, outcome, formula in front
        ]
    loss, found = best_of(path, top)
    return [
        Description(
            f"{place}. {outcome.origin}, generation {outcome.generation}",
            formula,
            loss,
            loss.shown(outcome.fitness),
        )
        for place, (outcome, formula) in enumerate(found, start=1)
    ]


def describe(text: str, language: Language = METRIC) -> Description:
    """A formula by whatever names it.

    Args:
        text: a published name, formula text, a Pruner-Zero tree (`.json`) or a DSA graph.
        language: of formula text.

    Raises:
        UsageError: it is none of these, or the tree cannot be read.
    """
    if text.endswith(".json"):
        return Description(Path(text).name, _tree(text))
    check_no_path(text)
    shares = language is METRIC and (text in ALLOCATIONS or text.lstrip().startswith("W:"))
    if shares or language is ALLOCATION:
        return Description(text, allocation(text))
    return Description(text, metric(text) if language is METRIC else parse(text, language))


def _tree(text: str) -> Formula:
    try:
        tree = expanded(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the tree {text!r}: {why}") from error
    return parse_pruner_zero(tree)


def ingredients(language: Language) -> list[dict[str, Any]]:
    """What formulas of a language are made of, plain values for JSON: one a word."""
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "arguments": [],
            "result": getattr(entry.type, "__name__", ""),
            "about": entry.about,
            **({"costs": MEASURERS[name].costs} if name in MEASURERS else {}),
        }
        for name, entry in language.terminals.items()
    ]
    rows += [
        {
            "name": word(primitive.name),
            "arguments": [type_.__name__ for type_ in primitive.arguments],
            "result": primitive.result.__name__,
            "about": primitive.about,
        }
        for primitive in language.primitives.values()
    ]
    return rows
