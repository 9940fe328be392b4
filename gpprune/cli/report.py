"""What a search found, beside the published metrics, on text that it never saw."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

from ..compile import render
from ..evals import MetricFitness
from ..gp import SearchResult
from ..primitives import METRICS, Formula, parse, published
from ..prune import Recipe, parse_pattern
from .console import err, escape, print_table
from .problem import MetricProblem, Workbench

REPORT_FILE = "report.json"
RECIPE_FILE = "recipe.json"
WINNERS = 3


def describe(
    result: SearchResult, problem: MetricProblem, bench: Workbench, run: Path
) -> dict[str, Any]:
    """Judge the published metrics and the best evolved ones on validation and test text.

    A published metric is held under its own pattern or the search's, whichever serves it better
    on the validation text: the search may not win by the pattern alone.
    """
    report = bench.report or (lambda label, done, total: None)
    rows: list[dict[str, Any]] = []
    judges = _Judges(problem, bench)
    evolved = [o for o in result.best(len(result.archive)) if not o.origin.startswith("seed ")]
    count = len(METRICS) + len(evolved[:WINNERS])
    for name, entry in METRICS.items():
        report("judging on test text", len(rows), count)
        pattern = judges.better(published[name], entry.pattern)
        origin = f"published, {entry.paper.split(',')[0]}"
        rows.append(judges.row(name, origin, published[name], pattern))
    for place, outcome in enumerate(evolved[:WINNERS], start=1):
        report("judging on test text", len(rows), count)
        origin = f"{outcome.origin}, generation {outcome.generation}"
        rows.append(judges.row(f"evolved {place}", origin, parse(outcome.text), problem.pattern))
    report("judging on test text", count, count)
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


class _Judges:
    """One pruned copy of the model a pattern, and what was judged on validation text."""

    def __init__(self, problem: MetricProblem, bench: Workbench) -> None:
        self.problem = problem
        self.bench = bench
        self.texts = {"validation": bench.windows("validation"), "test": bench.test_windows()}
        self.copies: dict[str, MetricFitness] = {}
        self.known: dict[tuple[str, str, str], float] = {}

    def perplexity(self, formula: Formula, pattern: str, split: str) -> float:
        place = (formula.text, pattern, split)
        if place not in self.known:
            if pattern not in self.copies:
                windows = self.texts["validation"]
                self.copies[pattern] = self.bench.fitness(windows, self.problem.sparsity, pattern)
            form = formula.canonical(parse_pattern(pattern).group)
            (judgement,) = self.copies[pattern].judge(form, self.texts[split])
            self.known[place] = judgement.perplexity
        return self.known[place]

    def better(self, formula: Formula, own: str) -> str:
        """The pattern, of a metric's own and the search's, with the lower perplexity."""
        patterns = [own, self.problem.pattern]
        return min(patterns, key=lambda pattern: self.perplexity(formula, pattern, "validation"))

    def row(self, name: str, origin: str, formula: Formula, pattern: str) -> dict[str, Any]:
        return {
            "name": name,
            "origin": origin,
            "formula": formula.text,
            "key": formula.key,
            "pattern": pattern,
            "validation_perplexity": _finite(self.perplexity(formula, pattern, "validation")),
            "test_perplexity": _finite(self.perplexity(formula, pattern, "test")),
            "closed_form": render(formula.canonical(None), "line"),
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
            row["origin"].removeprefix("published, "),
            row["pattern"],
            _shown(row["validation_perplexity"]),
            _shown(row["test_perplexity"]),
            row["closed_form"],
        ]
        for row in document["metrics"]
    ]
    title = (
        f"{document['model']} at sparsity {document['sparsity']:g}: perplexity "
        f"({document['evaluated']} formulas judged, {document['archive_hits']} archive hits)"
    )
    print_table(columns, rows, title=title, numbers=["validation", "test"])
    run = shlex.quote(document["run"])
    hints = [(f"gpprune simplify {run}", "the closed forms")]
    if any(row["name"].startswith("evolved") for row in document["metrics"]):
        recipe = shlex.quote(str(Path(document["run"]) / RECIPE_FILE))
        hints.append((f"gpprune prune --recipe {recipe} --out DIR", "a checkpoint"))
    width = max(len(command) for command, _ in hints)
    for command, what in hints:
        err.print(escape(f"{command:<{width}}  {what}"), highlight=False, soft_wrap=True)


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
