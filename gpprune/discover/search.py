"""One call that searches on a model and judges the winners on text that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gpprune.discover.findings import WINNERS, Finding, Shown, find
from gpprune.discover.goals.goal import Goal
from gpprune.discover.report import versions, write_report
from gpprune.discover.stored import check_digests, moved, problem_of, restored
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, RECIPE, Loss, ModelFitness, ShownTable, shown
from gpprune.gp import (
    PRESETS,
    RunDirectory,
    Screening,
    SearchEvent,
    SearchResult,
    SearchSettings,
    evolve,
)
from gpprune.primitives import Formula, parse
from gpprune.progress import Progress, silent
from gpprune.prune import Coverage, Loaded, Recipe, check_output

Observer = Callable[[SearchEvent], None]


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


def discover(
    goal: Goal,
    *,
    out: str | Path | None = None,
    settings: SearchSettings | None = None,
    rivals: str = "all",
    winners: int = WINNERS,
    loaded: Loaded | None = None,
    progress: Progress = silent,
    observer: Observer | None = None,
) -> Discovery:
    """Search for formulas on a model, and judge the best on text that the search never saw.

    Args:
        goal: what to search for, on which model and text.
        out: a run directory to make, which holds everything and can be gone on with; None: nothing
            is kept on disk.
        settings: of the search; by default those of the goal's preset.
        rivals: which published formulas to judge beside: "all", or "best" on validation text.
        winners: how many of the best evolved formulas to judge on test text.
        loaded: the goal's model, loaded already in float32.
        progress: called as `progress(label, done, total)` before and after the search.
        observer: called with a `SearchEvent` after each candidate.

    Raises:
        UsageError: a wrong setting, or `out` exists; nothing has been made then.
        GppruneError: the model or a text cannot be had.
    """
    goal.check()
    _starts(goal)
    shown = Shown(rivals, winners)
    path = None if out is None else check_output(out)
    chosen = settings or PRESETS[goal.preset]
    bench = ready(goal, loaded, progress)
    fitness = goal.fitness(bench, progress)
    making = (
        nullcontext()
        if path is None
        else RunDirectory.create(path, chosen, problem_of(goal, bench))
    )
    with making as run:
        return _search(goal, bench, fitness, chosen, run, shown, progress, observer)


def resume(
    run: str | Path,
    *,
    generations: int | None = None,
    time_limit: float | None = None,
    model: str | None = None,
    texts: Sequence[str] = (),
    calibration_text: str | None = None,
    rivals: str = "all",
    winners: int = WINNERS,
    loaded: Loaded | None = None,
    progress: Progress = silent,
    observer: Observer | None = None,
) -> Discovery:
    """Go on with a search that was broken off, or extend a finished one.

    Args:
        run: its directory.
        generations: go on to this many; None: as many as it began with.
        time_limit: seconds that this call may take; None: no limit.
        model: where the run's model lies now; it must be the same model.
        texts: where the texts that are judged on lie now: as many as they are, in their order.
        calibration_text: where the text that is calibrated on lies now.
        rivals: as for `discover`.
        winners: as for `discover`.
        loaded: the run's model, loaded already in float32.
        progress: as for `discover`.
        observer: as for `discover`.

    Raises:
        UsageError: the model, its tokenizer or a text is no longer what the run began with.
        GppruneError: the directory is damaged, or is no search of this gpprune.
    """
    shown = Shown(rivals, winners)
    with RunDirectory.open(run) as opened:
        goal = moved(restored(opened), model, texts, calibration_text)
        changes: dict[str, Any] = {"time_limit": time_limit}
        if generations is not None:
            changes["generations"] = generations
        settings = opened.search.replaced(**changes)
        bench = ready(goal, loaded, progress)
        check_digests(opened, bench)
        fitness = goal.fitness(bench, progress)
        return _search(goal, bench, fitness, settings, opened, shown, progress, observer)


def ready(goal: Goal, loaded: Loaded | None = None, progress: Progress = silent) -> Workbench:
    """A workbench with all that can fail for want of a model or text done.

    Args:
        goal: what is searched for.
        loaded: its model, if it is loaded already.
        progress: called as `progress(label, done, total)`.
    """
    if loaded is not None and loaded.name != goal.model:
        raise UsageError(
            f"the loaded model is {loaded.name!r}, and the goal's {goal.model!r}: name one in both"
        )
    texts = goal.texts
    bench = Workbench(
        loaded or goal.model,
        texts,
        dtype=goal.dtype,
        loss=goal.loss,
        reads=[
            *((text, "validation") for text in texts.judged),
            (texts.calibration_text, "calibration"),
        ],
        names=goal.statistics.union(*(start.names for start in _starts(goal))),
        progress=progress,
    )
    bench.check_pattern(goal.pattern)
    if (goal.order or ("sequential" if goal.draft == RECIPE else "dense")) != "dense":
        bench.check_chain()
    for text in texts.judged:
        bench.test_windows(spread=goal.spread, text=text)
    bench.windows("validation", spread=goal.spread)
    bench.statistics(progress)
    return bench


def _starts(goal: Goal) -> list[Formula]:
    """What the search starts from, as it keeps formulas.

    Raises:
        FormulaError: something is no formula of the goal, or none that prunes.
    """
    return [goal.canonical(parse(text, goal.language)) for text in goal.starts]


def _search(
    goal: Goal,
    bench: Workbench,
    fitness: ModelFitness,
    settings: SearchSettings,
    run: RunDirectory | None,
    shown: Shown,
    progress: Progress,
    observer: Observer | None,
) -> Discovery:
    result = evolve(
        goal.language,
        fitness,
        settings=settings,
        seeds=goal.seeds(),
        starts=_starts(goal),
        canonical=goal.canonical,
        fingerprint=fitness.fingerprint,
        run=run,
        observer=observer,
    )
    findings = find(goal, bench, fitness, result, shown=shown, progress=progress)
    path = None if run is None else run.path
    discovery = Discovery(goal, result, findings, bench.coverage, path, bench.documents)
    if run is not None:
        write_report(run.path, discovery.document(), discovery.recipe)
    return discovery
