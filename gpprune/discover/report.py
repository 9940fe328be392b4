"""The report of a search as a file of its run directory, and the recipe of its best formula."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError
from gpprune.files import whole_file
from gpprune.gp import Screening
from gpprune.prune import Recipe

_LIBRARIES = ("gpprune", "torch", "transformers", "deap", "sympy")
REPORT_FILE = "report.json"
RECIPE_FILE = "recipe.json"


def versions() -> dict[str, str]:
    """What a search ran with: gpprune, Python and the libraries that a figure may depend on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in _LIBRARIES}


def write_report(run: Path, document: dict[str, Any], recipe: Recipe | None) -> None:
    """Write a search's report and its best recipe, each whole or not at all.

    Args:
        run: the run directory.
        document: plain values, see `Discovery.document`.
        recipe: of the best evolved formula, if there is one.

    Raises:
        GppruneError: they cannot be written; the run itself is kept.
    """
    _write(run / REPORT_FILE, json.dumps(document, indent=2) + "\n")
    if recipe is not None:
        _write(run / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        whole_file(path, text)
    except OSError as error:
        raise GppruneError(
            f"cannot write {path}: {error.strerror or error}; make room, then make the report anew "
            f"with `gpprune resume {path.parent}`"
        ) from error


def screening_line(screening: Screening) -> str:
    """What the estimates of a search were worth, in a sentence."""
    spared = f"spared {screening.spared} of {screening.estimated} candidates their judging"
    if screening.kendall_tau is None:
        return f"the curvature's estimate {spared}"
    return (
        f"the curvature's estimate and the loss rank {screening.judged} candidates with Kendall's "
        f"tau {screening.kendall_tau:.2f}; it {spared}"
    )


def reported(run: Path, text: str | None, figure: str) -> tuple[float | None, float | None]:
    """What a run's report says of an evolved formula on validation and test text; None: nothing.

    Args:
        run: the run directory.
        text: the formula's text.
        figure: the name of the loss's figure, as "perplexity".

    Raises:
        GppruneError: the report is damaged.
    """
    file = run / REPORT_FILE
    if text is None or not file.is_file():
        return None, None
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["formulas"]
        # a published formula may be of the same text, in another setting
        evolved = [row for row in rows if str(row["name"]).startswith("evolved")]
        row: dict[str, Any] = next((row for row in evolved if row["formula"] == text), {})
        validation, test = (row.get(f"{text}_{figure}") for text in ("validation", "test"))
        return _number(validation), _number(test)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GppruneError(
            f"{file} cannot be read: {error}; make it anew with `gpprune resume {run}`"
        ) from error


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a figure is {value!r}, not a number")
    return float(value)
