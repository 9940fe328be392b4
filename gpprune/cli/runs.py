"""`gpprune report`: what finished or running searches have found, side by side."""

from __future__ import annotations

import json as json_
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli.console import print_json, print_table
from gpprune.cli.live import perplexity
from gpprune.cli.options import Json
from gpprune.cli.plots import plot_search
from gpprune.cli.report import REPORT_FILE
from gpprune.compile import render
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import Archive, Outcome, RunDirectory
from gpprune.primitives import LANGUAGES, METRIC, parse


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Draw the best so far against the candidates judged: PATH.png and PATH.svg.",
            metavar="PATH",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare searches: candidates judged, the best formula, its test perplexity if judged."""
    rows = []
    paths: dict[str, list[tuple[int, float]]] = {}
    groups: dict[str, str] = {}
    for path in runs:
        name = path.name if path.name not in paths else str(path)
        with RunDirectory.open(path) as run:
            outcomes = run.outcomes()
            rows.append(_row(name, run, outcomes))
            paths[name] = best_so_far(outcomes)
            groups[name] = run.search.strategy
    pictures: list[Path] = []
    if plot is not None:
        if not any(paths.values()):
            raise UsageError("none of the runs has a fully judged formula to draw yet")
        drawn = {name: points for name, points in paths.items() if points}
        grouped = groups if len(set(groups.values())) > 1 else None
        pictures = plot_search(drawn, plot, "Best validation perplexity so far", grouped)
    if json:
        print_json(rows)
        return
    columns = ["run", "strategy", "seed", "candidates", "validation", "test"]
    table = [
        [
            row["run"],
            row["strategy"],
            str(row["seed"]),
            str(row["candidates"]),
            _shown(row["validation_perplexity"]),
            _shown(row["test_perplexity"]),
        ]
        for row in rows
    ]
    print_table(columns, table, numbers=["seed", "candidates", "validation", "test"])
    for row in rows:  # a column beside the numbers would be too narrow for a formula
        if row["closed_form"] is not None:
            print(f"{row['run']}  {row['closed_form']}")
    for picture in pictures:
        print(picture)


def best_so_far(outcomes: list[Outcome]) -> list[tuple[int, float]]:
    """(candidates judged, least validation perplexity by then), a point for each improvement.

    The last point is the end of the run.
    """
    points: list[tuple[int, float]] = []
    best = math.inf
    for count, outcome in enumerate(outcomes, start=1):
        if outcome.full and outcome.fitness < best:
            best = outcome.fitness
            points.append((count, perplexity(outcome)))
    if points and points[-1][0] < len(outcomes):
        points.append((len(outcomes), points[-1][1]))
    return points


def _row(name: str, run: RunDirectory, outcomes: list[Outcome]) -> dict[str, Any]:
    best = next(iter(Archive(outcomes).evolved(1)), None)
    language = LANGUAGES.get(str(run.problem.get("goal")), METRIC)
    form = None if best is None else parse(best.text, language).canonical(None)
    return {
        "run": name,
        "goal": run.problem.get("goal"),
        "strategy": run.search.strategy,
        "seed": run.search.seed,
        "candidates": len(outcomes),
        "validation_perplexity": None if best is None else perplexity(best),
        "test_perplexity": _tested(run.path, best),
        "formula": None if best is None else best.text,
        "closed_form": None if form is None else render(form, "line"),
    }


def _tested(path: Path, best: Outcome | None) -> float | None:
    """What the run's own report says of its best formula on test text."""
    file = path / REPORT_FILE
    if best is None or not file.is_file():
        return None
    try:
        rows = json_.loads(file.read_text(encoding="utf-8"))["formulas"]
        return next((row["test_perplexity"] for row in rows if row["formula"] == best.text), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GppruneError(
            f"{file} cannot be read: {error}; make it anew with `gpprune resume {path}`"
        ) from error


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
