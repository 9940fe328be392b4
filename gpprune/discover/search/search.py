"""One call that searches on a model and judges the winners on text that the search never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpprune.discover.findings import WINNERS, Shown, find
from gpprune.discover.goals.goal import Goal
from gpprune.discover.report import Discovery, write_report
from gpprune.discover.search.crews import Workers, reached, started
from gpprune.discover.search.ready import ready, starts
from gpprune.discover.stored import check_digests, moved, problem_of, restored
from gpprune.discover.workbench import Workbench
from gpprune.evals import ModelFitness
from gpprune.gp import PRESETS, Crew, RunDirectory, SearchEvent, SearchSettings, evolve
from gpprune.progress import Progress, silent
from gpprune.prune import Loaded, check_output

Observer = Callable[[SearchEvent], None]


def discover(
    goal: Goal,
    *,
    out: str | Path | None = None,
    settings: SearchSettings | None = None,
    rivals: str = "all",
    winners: int = WINNERS,
    workers: Workers = 1,
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
        workers: how many processes judge candidates; they share the model, and torch's threads are
            divided among them. For a model on the CPU. Or a `RayCluster`.
        loaded: the goal's model, loaded already in float32.
        progress: called as `progress(label, done, total)` before and after the search.
        observer: called with a `SearchEvent` after each candidate.

    Raises:
        UsageError: a wrong setting, or `out` exists; nothing has been made then.
        GppruneError: the model or a text cannot be had.
    """
    goal.check()
    starts(goal)
    shown = Shown(rivals, winners)
    path = None if out is None else check_output(out)
    chosen = settings or PRESETS[goal.preset]
    with ExitStack() as stack:
        stack.enter_context(reached(workers))
        bench = ready(goal, loaded, progress)
        fitness = goal.fitness(bench, progress)
        crew = stack.enter_context(started(workers, goal, bench, fitness, chosen))
        run = None
        if path is not None:
            problem = problem_of(goal, bench)
            run = stack.enter_context(RunDirectory.create(path, chosen, problem))
        return _search(goal, bench, fitness, chosen, run, shown, progress, observer, crew)


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
    workers: Workers = 1,
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
        workers: as for `discover`; a run may go on with another number.
        loaded: the run's model, loaded already in float32.
        progress: as for `discover`.
        observer: as for `discover`.

    Raises:
        UsageError: the model, its tokenizer or a text is no longer what the run began with.
        GppruneError: the directory is damaged, or is no search of this gpprune.
    """
    shown = Shown(rivals, winners)
    with RunDirectory.open(run) as opened, ExitStack() as stack:
        goal = moved(restored(opened), model, texts, calibration_text)
        changes: dict[str, Any] = {"time_limit": time_limit}
        if generations is not None:
            changes["generations"] = generations
        settings = opened.search.replaced(**changes)
        stack.enter_context(reached(workers))
        bench = ready(goal, loaded, progress)
        check_digests(opened, bench)
        fitness = goal.fitness(bench, progress)
        crew = stack.enter_context(started(workers, goal, bench, fitness, settings))
        return _search(goal, bench, fitness, settings, opened, shown, progress, observer, crew)


def _search(
    goal: Goal,
    bench: Workbench,
    fitness: ModelFitness,
    settings: SearchSettings,
    run: RunDirectory | None,
    shown: Shown,
    progress: Progress,
    observer: Observer | None,
    crew: int | Crew,
) -> Discovery:
    result = evolve(
        goal.language,
        fitness,
        settings=settings,
        seeds=goal.seeds(),
        starts=starts(goal),
        canonical=goal.canonical,
        fingerprint=fitness.fingerprint,
        run=run,
        observer=observer,
        workers=crew,
    )
    findings = find(goal, bench, fitness, result, shown=shown, progress=progress)
    path = None if run is None else run.path
    discovery = Discovery(goal, result, findings, bench.coverage, path, bench.documents)
    if run is not None:
        write_report(run.path, discovery.document(), discovery.recipe)
    return discovery
