"""What a search found: a report, also as a file of its run directory, and its best recipe."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpprune.discover.findings import Finding
from gpprune.discover.goals.goal import Goal
from gpprune.errors import GppruneError
from gpprune.evals import LOSSES, Loss, ShownTable, shown
from gpprune.files import whole_file
from gpprune.gp import Screening, SearchResult
from gpprune.prune import Coverage, Recipe

_LIBRARIES = ("gpprune", "torch", "transformers", "deap", "sympy")
REPORT_FILE = "report.json"
RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, eq=False)
class Discovery:
    """What a search found.

    Attributes:
        goal: what was searched for.
        result: every candidate that was judged.
        findings: the published formulas and the best evolved ones, judged on test text, each under
            the goal's update and with masks alone.
        coverage: which matrices of the decoder blocks were pruned, and which left alone.
        run: the run directory, if there is one.
        documents: by split and task the documents that a loss of tasks went by.
    """

    goal: Goal
    result: SearchResult
    findings: tuple[Finding, ...]
    coverage: Coverage
    run: Path | None
    documents: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)

    @property
    def winners(self) -> tuple[Finding, ...]:
        """The best evolved formulas, best on validation text first."""
        return tuple(finding for finding in self.findings if finding.evolved)

    @property
    def rivals(self) -> tuple[Finding, ...]:
        """The published formulas."""
        return tuple(finding for finding in self.findings if not finding.evolved)

    @property
    def recipe(self) -> Recipe | None:
        """How to prune by the best evolved formula; None if nothing was evolved."""
        return self.goal.recipe(self.winners[0].formula) if self.winners else None

    @property
    def loss(self) -> Loss:
        """What was measured."""
        return LOSSES.find(self.goal.loss)

    @cached_property
    def screening(self) -> Screening | None:
        """What the fitness's estimates were worth; None where it had none."""
        return Screening.of(self.result.outcomes)

    @property
    def table(self) -> ShownTable:
        """What was found, for a reader: a row a formula, or two where there is an update."""
        goal, result = self.goal, self.result
        updated = ["update"] if goal.update != "none" else []
        whole = goal.update if goal.order is None else f"{goal.update}, {goal.order}"
        tests = [*self.findings[0].judged.tests] if self.findings else [""]
        numbers = ["validation", *(f"test\n{text}" if len(tests) > 1 else "test" for text in tests)]
        rows = [
            [
                finding.name,
                finding.origin.removeprefix("published, "),
                finding.setting,
                *([update] if updated else []),
                shown(judged.validation.figure),
                *(shown(test.figure) for test in judged.tests.values()),
                finding.closed_form,
            ]
            for finding in self.findings
            for update, judged in [("masks alone", finding.masks_alone), (whole, finding.judged)]
            if judged is not None
        ]
        title = (
            f"{goal.model} at sparsity {goal.sparsity:g}: {self.loss.figure} "
            f"({result.evaluated} formulas judged, {result.archive_hits} archive hits)"
        )
        columns = [goal.kind, "from", goal.varied, *updated, *numbers, "closed form"]
        return title, columns, rows, numbers

    def document(self) -> dict[str, Any]:
        """Plain values for JSON: what `report.json` holds."""
        goal = self.goal
        left = {"blocks": self.coverage.as_dict()} if self.coverage.left else {}
        return {
            "run": None if self.run is None else str(self.run),
            "goal": goal.kind,
            "model": goal.model,
            "sparsity": goal.sparsity,
            "pattern": goal.pattern,
            "update": goal.update,
            "order": goal.order,
            "draft": goal.draft,
            "starts": list(goal.starts),
            "shots": goal.shots,
            "loss": goal.loss,
            "evaluated": self.result.evaluated,
            "archive_hits": self.result.archive_hits,
            "generations": self.result.generations,
            "stopped": self.result.stopped,
            "estimate": None if self.screening is None else self.screening.as_dict(),
            **left,
            **({"documents": self.documents} if self.documents else {}),
            "versions": versions(),
            "formulas": [finding.as_dict(goal.varied) for finding in self.findings],
        }


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
    if text is None:
        return None, None
    row = next((row for row in _evolved_rows(run) if row["formula"] == text), {})
    try:
        return _number(row.get(f"validation_{figure}")), _number(row.get(f"test_{figure}"))
    except ValueError as error:
        raise _unreadable(run, error) from error


def is_reported(run: Path, text: str | None) -> bool:
    """Whether a run's report tells of an evolved formula; None: whether there is a report.

    Raises:
        GppruneError: the report is damaged.
    """
    if text is None:
        return (run / REPORT_FILE).is_file()
    return any(row["formula"] == text for row in _evolved_rows(run))


def _evolved_rows(run: Path) -> list[dict[str, Any]]:
    """What a run's report says of evolved formulas; nothing without one."""
    file = run / REPORT_FILE
    if not file.is_file():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["formulas"]
        # a published formula may be of the same text, in another setting
        evolved = [row for row in rows if str(row["name"]).startswith("evolved")]
        return [{**row, "formula": str(row["formula"])} for row in evolved]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(run, error) from error


def _unreadable(run: Path, error: Exception) -> GppruneError:
    return GppruneError(
        f"{run / REPORT_FILE} cannot be read: {error}; make it anew with `gpprune resume {run}`"
    )


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a figure is {value!r}, not a number")
    return float(value)
