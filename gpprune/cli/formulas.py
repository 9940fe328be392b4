"""`gpprune simplify` and `gpprune primitives`: formulas as a person reads them."""

from __future__ import annotations

import math
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli.console import escape, out, print_json, print_table
from gpprune.cli.options import Json
from gpprune.cli.problem import named_formula
from gpprune.compile import render
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RunDirectory
from gpprune.gp.archive import ranked
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    LANGUAGES,
    METRIC,
    Formula,
    Language,
    allocation,
    parse,
    parse_pruner_zero,
    word,
)

LanguageOption = Annotated[str, typer.Option("--language", help=f"One of: {', '.join(LANGUAGES)}.")]


def _language(name: str) -> Language:
    if name not in LANGUAGES:
        raise UsageError(f"unknown language {name!r}; there are {', '.join(LANGUAGES)}")
    return LANGUAGES[name]


class Format(StrEnum):
    """How a formula is written."""

    unicode = "unicode"
    latex = "latex"
    python = "python"
    json = "json"


def simplify(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FORMULA",
            help="A run directory, a published name, formula text, a Pruner-Zero tree (.json), "
            "a DSA graph.",
        ),
    ],
    top: Annotated[int, typer.Option("--top", help="How many of a run's best.", min=1)] = 3,
    format: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.unicode,
    language: LanguageOption = METRIC.name,
) -> None:
    """Print closed forms: the best of a run, or one formula brought to its canonical form."""
    # os.path, for a formula may be longer than any path can be
    rows = (
        _of_run(Path(what), top)
        if os.path.isdir(what)
        else [_of_formula(what, _language(language))]
    )
    if format == Format.json:
        print_json([{k: v for k, v in row.items() if k != "simplified"} for row in rows])
        return
    if format == Format.unicode:
        for row in rows:
            _show(row)
        return
    for row in rows:
        mark = "#" if format == Format.python else "%"
        if len(rows) > 1:
            print(f"{mark} {row['name']}: {row['formula']}")
        print(render(row["simplified"], format))


def _show(row: dict[str, Any]) -> None:
    judged = f"  validation perplexity {row['perplexity']:.2f}" if row.get("perplexity") else ""
    out.print(f"[bold]{escape(row['name'])}[/]{judged}", highlight=False)
    out.print(f"formula:    {escape(row['formula'])}", highlight=False)
    if row["simplified"].text != row["formula"]:
        out.print(f"simplified: {escape(row['simplified'].text)}", highlight=False)
    if row["same_masks_as"] != row["simplified"].text:
        out.print(f"same masks: {escape(row['same_masks_as'])}", highlight=False)
    print(f"\n{render(row['simplified'], 'unicode')}\n")


def _described(name: str, formula: Formula) -> dict[str, Any]:
    simplified = formula.canonical(None)
    return {
        "name": name,
        "formula": formula.text,
        "key": formula.key,
        "simplified": simplified,
        "simplified_text": simplified.text,
        "same_masks_as": formula.canonical("layer").text,
        "unicode": render(simplified, "line"),
        "latex": render(simplified, "latex"),
        "complexity": formula.complexity,
    }


def _of_formula(text: str, language: Language) -> dict[str, Any]:
    if not text.endswith(".json"):
        known = language is METRIC and (text in ALLOCATIONS or text.lstrip().startswith("W:"))
        if known or language is ALLOCATION:
            return _described(text, allocation(text))
        return _described(
            text, named_formula(text) if language is METRIC else parse(text, language)
        )
    path = Path(text)
    try:
        tree = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the tree {text!r}: {why}") from error
    return _described(path.name, parse_pruner_zero(tree))


def _of_run(path: Path, top: int) -> list[dict[str, Any]]:
    with RunDirectory.open(path) as run:
        language = _language(str(run.problem.get("goal", METRIC.name)))
        full = [outcome for outcome in run.outcomes() if outcome.full]
    if not full:
        raise GppruneError(f"the run {path} has no fully judged formula yet: resume it first")
    return [
        {
            **_described(
                f"{place}. {outcome.origin}, generation {outcome.generation}",
                parse(outcome.text, language),
            ),
            "perplexity": math.exp(min(outcome.fitness, 700)),
        }
        for place, outcome in enumerate(ranked(full)[:top], start=1)
    ]


def primitives(
    language: LanguageOption = METRIC.name,
    json: Json = False,
) -> None:
    """List what formulas are made of."""
    chosen = _language(language)
    rows = [
        {"name": name, "arguments": [], "result": t.type.__name__, "about": t.about}
        for name, t in chosen.terminals.items()
        if t.type is not None
    ]
    rows += [
        {
            "name": word(entry.name),
            "arguments": [type_.__name__ for type_ in entry.arguments],
            "result": entry.result.__name__,
            "about": entry.about,
        }
        for entry in chosen.primitives.values()
    ]
    if json:
        print_json(rows)
        return
    shown = [
        [str(row["name"]), ", ".join(row["arguments"]), str(row["result"]), str(row["about"])]
        for row in rows
    ]
    print_table(["name", "arguments", "result", "what it computes"], shown)
