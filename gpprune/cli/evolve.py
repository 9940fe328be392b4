"""`gpprune evolve` and `gpprune resume`: search for formulas on a model, and say what it found."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Annotated

import typer

from gpprune.cli import options
from gpprune.cli.console import going_on, print_json, tell, tell_left_alone
from gpprune.cli.found import print_discovery
from gpprune.cli.live import SearchScreen
from gpprune.discover import (
    AllocationGoal,
    Discovery,
    JointGoal,
    MetricGoal,
    Texts,
    discover,
    hired,
)
from gpprune.discover import resume as resume_search
from gpprune.discover.contenders import pattern_with_room, started
from gpprune.discover.findings import WINNERS, Shown
from gpprune.discover.stored import restored
from gpprune.errors import GppruneError
from gpprune.evals import NEXT_TOKEN
from gpprune.files import expanded
from gpprune.gp import RunDirectory, SearchSettings, duration, settings_of
from gpprune.primitives import metric as read_metric

_METRIC, _LAYERED = MetricGoal().texts, AllocationGoal().texts


def _evolve(
    kind: type[MetricGoal | AllocationGoal | JointGoal],
    out: options.Out,
    model: options.ModelSpec = "smollm2",
    text: options.SeveralTexts = ["wikitext2"],  # noqa: B006
    calibration_text: options.CalibrationSpec = "wikitext2",
    metric: options.MetricOption = "wanda",
    sparsity: options.Sparsity = 0.7,
    pattern: options.OwnPattern = None,
    unit: options.UnitOption = options.Unit.layer,
    update: options.UpdateOption = "none",
    damp_inputs: options.DampInputs = None,
    damp_outputs: options.DampOutputs = None,
    draft: options.Draft = None,
    order: options.ReportOrder = None,
    start: options.Start = None,
    shots: options.Shots = None,
    schedule: options.ScheduleOption = None,
    windows: options.Windows = _LAYERED.windows,
    window_length: options.WindowLength = _LAYERED.window_length,
    calibration_samples: options.Samples = _LAYERED.calibration_samples,
    loss: options.LossOption = NEXT_TOKEN.name,
    task_data: options.TaskData = None,
    per_task_docs: options.TaskDocuments = _LAYERED.documents,
    dtype: options.DTypeOption = options.DType.auto,
    preset: options.Preset = AllocationGoal.preset,
    population: options.Population = None,
    offspring: options.Offspring = None,
    generations: options.Generations = None,
    overlap: options.Overlap = None,
    strategy: options.Strategy = None,
    select: options.Select = None,
    time_limit: options.TimeLimit = None,
    seed: options.Seed = 0,
    rivals: options.RivalsOption = options.Rivals.all,
    winners: options.Winners = WINNERS,
    workers: options.Workers = None,
    ray: options.Ray = None,
    json: options.Json = False,
) -> None:
    amounts = (windows, window_length, calibration_samples, seed)
    texts = Texts(text[0], calibration_text, *amounts, task_data, per_task_docs, tuple(text[1:]))
    how = options.given(draft=draft, damp_inputs=damp_inputs, damp_outputs=damp_outputs)
    how |= options.given(shots=shots, schedule=schedule, order=order)
    how |= options.given(starts=started(start, kind.language))
    if metric is not None:
        read_metric(metric)
        how |= {"metric": metric}
    if unit is not None:
        how |= {"unit": str(unit)}
    chosen = pattern_with_room(metric or "", pattern)
    goal = kind(texts, model, sparsity, chosen, str(dtype), loss, update, **how)
    size = {"population": population, "offspring": offspring, "generations": generations}
    course = {"strategy": strategy, "select": select, "time_limit": time_limit, "seed": seed}
    settings = settings_of(preset, overlap=overlap, **size, **course)
    run, shown = expanded(out), Shown(str(rivals), winners)
    with SearchScreen(goal.language, goal.loss, settings) as screen, _kept(run, settings, shown):
        found = discover(
            goal,
            out=run,
            settings=settings,
            rivals=shown.rivals,
            winners=shown.winners,
            workers=hired(workers, ray),
            progress=screen.progress,
            observer=screen.observe,
        )
    _end(found, settings, shown, json)


evolve_metric = options.with_defaults(
    _evolve,
    "Evolve a pruning metric on a model, starting from the published ones and random formulas.",
    {"kind": MetricGoal, "metric": None, "unit": None},
    sparsity=0.5,
    pattern="layer",
    windows=_METRIC.windows,
    window_length=_METRIC.window_length,
    calibration_samples=_METRIC.calibration_samples,
    preset=MetricGoal.preset,
)
evolve_structured = options.with_defaults(
    evolve_metric,
    "Evolve what whole MLP channels or heads cost, starting from the published costs.",
    pattern="mlp",
    sparsity=0.2,
    update="least-squares",
)
evolve_allocation = options.with_defaults(
    _evolve,
    "Evolve how sparsity is shared out over layers, starting from the published allocations.",
    {"kind": AllocationGoal},
)
evolve_joint = options.with_defaults(
    _evolve,
    "Evolve a metric and an allocation together, starting from pairs of published ones.",
    {"kind": JointGoal, "metric": None},
    sparsity=0.5,
    pattern="layer",
    preset=JointGoal.preset,
)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    generations: Annotated[int | None, typer.Option(help="Go on to this many.", min=0)] = None,
    time_limit: options.TimeLimit = None,
    model: Annotated[
        str | None, typer.Option(help="Where the run's model lies now, if it moved.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Where each text lies now.")] = None,
    calibration_text: Annotated[
        str | None, typer.Option(help="Where that calibrated on lies now.")
    ] = None,
    rivals: options.RivalsOption = options.Rivals.all,
    winners: options.Winners = WINNERS,
    workers: options.Workers = None,
    ray: options.Ray = None,
    json: options.Json = False,
) -> None:
    """Go on with a search that was broken off, or extend a finished one."""
    run, shown = expanded(run), Shown(str(rivals), winners)
    limit = None if time_limit is None else duration(time_limit)
    with RunDirectory.open(run) as opened:
        goal = restored(opened)
        settings = opened.search.replaced(time_limit=limit)
        if generations is not None:
            settings = settings.replaced(generations=generations)
    with SearchScreen(goal.language, goal.loss, settings) as screen, _kept(run, settings, shown):
        found = resume_search(
            run,
            generations=generations,
            time_limit=limit,
            model=model,
            texts=text or (),
            calibration_text=calibration_text,
            rivals=shown.rivals,
            winners=shown.winners,
            workers=hired(workers, ray),
            progress=screen.progress,
            observer=screen.observe,
        )
    _end(found, settings, shown, json)


def _kept(run: Path, settings: SearchSettings, shown: Shown) -> AbstractContextManager[None]:
    """Say how to go on, if a search is broken off once it has a run directory."""
    return going_on(
        lambda: (
            f"the run is kept: go on with `{_again(run, settings, shown)}`"
            if run.is_dir()
            else None
        )
    )


def _again(run: Path, settings: SearchSettings, shown: Shown) -> str:
    """The command that goes on with a run."""
    more = ""
    with suppress(GppruneError), RunDirectory.open(run) as opened:
        if settings.generations != opened.search.generations:
            more = f" --generations {settings.generations}"
    if shown.rivals != options.Rivals.all:
        more += f" --rivals {shown.rivals}"
    if shown.winners != WINNERS:
        more += f" --winners {shown.winners}"
    return f"gpprune resume {shlex.quote(str(run))}{more}"


def _end(found: Discovery, settings: SearchSettings, shown: Shown, json: bool) -> None:
    if found.result.stopped and found.run is not None:
        tell(
            f"stopped by the {found.result.stopped} after {found.result.generations} generations; "
            f"go on with `{_again(found.run, settings, shown)}`"
        )
    tell_left_alone(found.coverage)
    if json:
        print_json(found.document())
    else:
        print_discovery(found)
