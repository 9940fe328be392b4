"""`gpprune simplify` and `gpprune primitives`: formulas as a person reads them."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpprune.cli.console import clean, escape, out, print_json, print_table, say
from gpprune.cli.options import Json
from gpprune.compile import render
from gpprune.discover import Description, describe, describe_run, ingredients
from gpprune.errors import UsageError
from gpprune.evals import shown
from gpprune.primitives import LANGUAGES, METRIC

LanguageOption = Annotated[str, typer.Option("--language", help=f"One of: {', '.join(LANGUAGES)}.")]


class Format(StrEnum):
    """How a formula is written."""

    unicode = "unicode"
    latex = "latex"
    python = "python"
    mathml = "mathml"
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
    by_length: Annotated[
        bool, typer.Option("--by-length", help="Of a run in place of --top: the best per length.")
    ] = False,
    format: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.unicode,
    language: LanguageOption = METRIC.name,
) -> None:
    """Print closed forms: the best of a run, or one formula brought to its canonical form."""
    # os.path, for a formula may be longer than any path can be
    path = os.path.expanduser(what)
    if by_length and not os.path.isdir(path):
        raise UsageError(f"--by-length is of a run, and {what!r} is no directory: leave it out")
    found = (
        describe_run(Path(path), top, by_length=by_length)
        if os.path.isdir(path)
        else [describe(what, LANGUAGES.find(language))]
    )
    if format == Format.json:
        print_json([description.as_dict() for description in found])
    elif format == Format.unicode:
        for description in found:
            _show(description)
    else:
        _write(found, format)


def _write(found: list[Description], format: Format) -> None:
    mark = {Format.python: "# {}", Format.mathml: "<!-- {} -->"}.get(format, "% {}")
    for description in found:
        if len(found) > 1:
            say(mark.format(f"{description.name}: {description.formula.text}"))
        print(clean(render(description.simplified, format)))


def _show(description: Description) -> None:
    judged = ""
    if description.loss is not None and description.figure is not None:
        judged = f"  validation {description.loss.figure} {shown(description.figure)}"
    out.print(f"[bold]{escape(description.name)}[/]{judged}", highlight=False)
    text, simplified = description.formula.text, description.simplified.text
    say(f"formula:    {text}")
    if simplified != text:
        say(f"simplified: {simplified}")
    if description.same_masks_as.text != simplified:
        say(f"same masks: {description.same_masks_as.text}")
    print(f"\n{render(description.simplified, 'unicode')}\n")


def primitives(
    language: LanguageOption = METRIC.name,
    json: Json = False,
) -> None:
    """List what formulas are made of."""
    rows = ingredients(LANGUAGES.find(language))
    if json:
        print_json(rows)
        return
    table = [
        [str(row["name"]), ", ".join(row["arguments"]), str(row["result"]), str(row["about"])]
        for row in rows
    ]
    print_table(["name", "arguments", "result", "what it computes"], table)
