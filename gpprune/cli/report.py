"""What a search found, beside the published formulas, on text that it never saw."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import torch

from gpprune.cli.console import err, escape, print_table
from gpprune.cli.goals import GOALS, Choice, Goal, Judge, Rival
from gpprune.cli.problem import Workbench
from gpprune.compile import render
from gpprune.evals import Judgement
from gpprune.gp import SearchResult
from gpprune.primitives import Formula, parse

REPORT_FILE = "report.json"
RECIPE_FILE = "recipe.json"
WINNERS = 3


def describe(
    result: SearchResult,
    goal: Goal,
    bench: Workbench,
    fitness: Judge,
    run: Path,
    *,
    all_rivals: bool = True,
) -> dict[str, Any]:
    """Judge the published formulas and the best evolved ones on validation and test text.

    Unless `all_rivals`, of the published ones only the best on validation text is in the report.
    """
    report = bench.report or (lambda label, done, total: None)
    judges = _Judges(goal, bench, fitness)
    choices = [judges.best(rival) for rival in goal.rivals()]
    if not all_rivals:
        choices = [min(choices, key=lambda found: judges.perplexity(found[0], "validation"))]
    winners = result.archive.evolved(WINNERS)
    rows: list[dict[str, Any]] = []
    count = len(choices) + len(winners)
    for choice, paper in choices:
        report("judging on test text", len(rows), count)
        rows.append(judges.row(choice, f"published, {paper.split(',')[0]}"))
    for place, outcome in enumerate(winners, start=1):
        report("judging on test text", len(rows), count)
        formula = parse(outcome.text, goal.language)
        choice = Choice(f"evolved {place}", formula, goal.own_way)
        rows.append(judges.row(choice, f"{outcome.origin}, generation {outcome.generation}"))
    report("judging on test text", count, count)
    return {
        "run": str(run),
        "goal": goal.kind,
        "model": goal.model,
        "sparsity": goal.sparsity,
        "pattern": goal.pattern,
        "evaluated": result.evaluated,
        "archive_hits": result.archive_hits,
        "generations": result.generations,
        "stopped": result.stopped,
        "formulas": rows,
    }


class _Judges:
    """One pruned copy of the model a way of judging, and what was judged already."""

    def __init__(self, goal: Goal, bench: Workbench, fitness: Judge) -> None:
        self.goal = goal
        self.bench = bench
        self.test = bench.test_windows(spread=goal.spread)
        self.fitness = fitness
        self.copies = {goal.own_way: fitness}
        self.known: dict[tuple[str, str, str], float] = {}

    def best(self, rival: Rival) -> tuple[Choice, str]:
        """The choice that serves a rival best on validation text, and its paper."""
        choice = min(rival.choices, key=lambda choice: self.perplexity(choice, "validation"))
        return choice, rival.paper

    def perplexity(self, choice: Choice, split: str) -> float:
        place = (choice.formula.text, choice.way, split)
        if place not in self.known:
            if choice.way not in self.copies:
                self.copies[choice.way] = self.goal.variant(self.fitness, self.bench, choice.way)
            form = self.goal.canonical(choice.formula, choice.way)
            self.known[place] = self._judged(self.copies[choice.way], form, split).perplexity
        return self.known[place]

    def _judged(self, fitness: Judge, form: Formula, split: str) -> Judgement:
        if split == "validation":  # the fitness's own cases, which it may remember
            losses = fitness.prepare(form)(0, fitness.cases)
            return Judgement(torch.tensor(losses, dtype=torch.float64))
        (judgement,) = fitness.judge(form, self.test)
        return judgement

    def row(self, choice: Choice, origin: str) -> dict[str, Any]:
        return {
            "name": choice.name,
            "origin": origin,
            "formula": choice.formula.text,
            "key": choice.formula.key,
            self.goal.way: choice.way,
            "validation_perplexity": _finite(self.perplexity(choice, "validation")),
            "test_perplexity": _finite(self.perplexity(choice, "test")),
            "closed_form": render(choice.formula.canonical(None), "line"),
        }


def _finite(perplexity: float) -> float | None:
    """A perplexity as JSON can hold it: nothing for infinity and NaN."""
    return perplexity if math.isfinite(perplexity) else None


def print_report(document: dict[str, Any]) -> None:
    """The table of a search, and what to do next."""
    way = GOALS[document["goal"]].way
    columns = [document["goal"], "from", way, "validation", "test", "closed form"]
    rows = [
        [
            row["name"],
            row["origin"].removeprefix("published, "),
            row[way],
            _shown(row["validation_perplexity"]),
            _shown(row["test_perplexity"]),
            row["closed_form"],
        ]
        for row in document["formulas"]
    ]
    title = (
        f"{document['model']} at sparsity {document['sparsity']:g}: perplexity "
        f"({document['evaluated']} formulas judged, {document['archive_hits']} archive hits)"
    )
    print_table(columns, rows, title=title, numbers=["validation", "test"])
    run = shlex.quote(document["run"])
    hints = [(f"gpprune simplify {run}", "the closed forms")]
    if any(row["name"].startswith("evolved") for row in document["formulas"]):
        recipe = shlex.quote(str(Path(document["run"]) / RECIPE_FILE))
        hints.append((f"gpprune prune --recipe {recipe} --out DIR", "a checkpoint"))
    width = max(len(command) for command, _ in hints)
    for command, what in hints:
        err.print(escape(f"{command:<{width}}  {what}"), highlight=False, soft_wrap=True)


def _shown(perplexity: float | None) -> str:
    return "inf" if perplexity is None else f"{perplexity:.2f}"


def write_report(document: dict[str, Any], goal: Goal, run: Path) -> None:
    """The report and the best evolved recipe, each written whole."""
    _write(run / REPORT_FILE, json.dumps(document, indent=2) + "\n")
    evolved = [row for row in document["formulas"] if row["name"].startswith("evolved")]
    if evolved:
        recipe = goal.recipe(parse(evolved[0]["formula"], goal.language))
        _write(run / RECIPE_FILE, recipe.model_dump_json(indent=2) + "\n")


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
