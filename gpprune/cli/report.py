"""What a search found, beside the published metrics, on text that it never saw."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ..compile import render
from ..gp import SearchResult
from ..primitives import METRICS, parse, published
from ..prune import Recipe, parse_pattern
from .console import err, print_table
from .problem import MetricProblem, Workbench

REPORT_FILE = "report.json"
RECIPE_FILE = "recipe.json"
WINNERS = 3


def describe(
    result: SearchResult, problem: MetricProblem, bench: Workbench, run: Path
) -> dict[str, Any]:
    """Judge the published metrics, each under its own pattern, and the best evolved ones."""
    evolved = [o for o in result.best(len(result.archive)) if not o.origin.startswith("seed ")]
    entries = [
        (name, f"published, {entry.paper.split(',')[0]}", published[name], entry.pattern)
        for name, entry in METRICS.items()
    ]
    entries += [
        (
            f"evolved {place}",
            f"{o.origin}, generation {o.generation}",
            parse(o.text),
            problem.pattern,
        )
        for place, o in enumerate(evolved[:WINNERS], start=1)
    ]
    rows = []
    report = bench.report or (lambda label, done, total: None)
    texts = bench.windows("validation"), bench.test_windows()
    judges = {
        pattern: bench.fitness(texts[0], problem.sparsity, pattern)
        for pattern in {pattern for *_, pattern in entries}
    }
    for done, (name, origin, formula, pattern) in enumerate(entries):
        report("judging on test text", done, len(entries))
        form = formula.canonical(parse_pattern(pattern).group)
        found = [_finite(j.perplexity) for j in judges[pattern].judge(form, *texts)]
        rows.append(
            {
                "name": name,
                "origin": origin,
                "formula": formula.text,
                "key": formula.key,
                "pattern": pattern,
                "validation_perplexity": found[0],
                "test_perplexity": found[1],
                "closed_form": render(formula, "line"),
            }
        )
    report("judging on test text", len(entries), len(entries))
    return {
        "run": str(run),
        "model": problem.model,
        "sparsity": problem.sparsity,
        "pattern": problem.pattern,
        "evaluated": result.evaluated,
        "archive_hits": result.archive_hits,
        "generations": result.generations,
        "stopped": result.stopped,
        "metrics": rows,
    }


def _finite(perplexity: float) -> float | None:
    """A perplexity as JSON can hold it: nothing for infinity and NaN."""
    return perplexity if math.isfinite(perplexity) else None


def print_report(document: dict[str, Any]) -> None:
    """The table of a search, and what to do next."""
    columns = ["metric", "from", "pattern", "validation", "test", "closed form"]
    rows = [
        [
            row["name"],
            row["origin"],
            row["pattern"],
            _shown(row["validation_perplexity"]),
            _shown(row["test_perplexity"]),
            row["closed_form"],
        ]
        for row in document["metrics"]
    ]
    title = (
        f"{document['model']} at {document['sparsity']:.0%} sparsity: perplexity "
        f"({document['evaluated']} formulas judged, {document['archive_hits']} archive hits)"
    )
    print_table(columns, rows, title=title, numbers=["validation", "test"])
    run = document["run"]
    err.print(f"gpprune simplify {run}                        the closed forms", highlight=False)
    err.print(
        f"gpprune prune --recipe {run}/{RECIPE_FILE} --out DIR   a checkpoint", highlight=False
    )


def _shown(perplexity: float | None) -> str:
    return "inf" if perplexity is None else f"{perplexity:.2f}"


def write_report(document: dict[str, Any], run: Path) -> None:
    """The report and the best evolved recipe, each written whole."""
    _write(run / REPORT_FILE, json.dumps(document, indent=2) + "\n")
    evolved = [row for row in document["metrics"] if row["name"].startswith("evolved")]
    if evolved:
        recipe = Recipe(
            metric=evolved[0]["formula"],
            sparsity=document["sparsity"],
            pattern=document["pattern"],
        )
        _write(run / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
