"""`gpprune evolve` and `gpprune resume`: search for formulas on a model, and say what it found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli.console import err, escape, print_json, progress
from gpprune.cli.goals import AllocationGoal, Goal, JointGoal, MetricGoal, restored
from gpprune.cli.live import SearchProgress
from gpprune.cli.options import (
    SEARCH,
    CalibrationSpec,
    DType,
    DTypeOption,
    Json,
    MetricOption,
    ModelSpec,
    Out,
    OwnPattern,
    PatternOption,
    Rivals,
    RivalsOption,
    Samples,
    Seed,
    Sparsity,
    TextSpec,
    Unit,
    UnitOption,
    WindowLength,
    Windows,
)
from gpprune.cli.problem import Texts, Workbench, named_formula, pattern_of
from gpprune.cli.report import describe, print_report, write_report
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import PRESETS, RunDirectory, SearchResult, SearchSettings, evolve
from gpprune.prune import check_output, parse_pattern

_LIMIT = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

# Allocations are told apart by long windows of several articles: on SmolLM2-135M at 70 % the best
# of 132 on one article was 5 % better there than an allocation that beats it by 16 % on test text.
LAYERED_WINDOWS, LAYERED_LENGTH, LAYERED_SAMPLES = 6, 1024, 8

TimeLimit = Annotated[
    str | None,
    typer.Option("--time-limit", help="Stop after so long: 90s, 20m, 1h.", rich_help_panel=SEARCH),
]

Preset = Annotated[
    str, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}.", rich_help_panel=SEARCH)
]
Population = Annotated[
    int | None, typer.Option("--population", help="Formulas kept.", rich_help_panel=SEARCH)
]
Generations = Annotated[
    int | None, typer.Option("--generations", help="Rounds of variation.", rich_help_panel=SEARCH)
]
Strategy = Annotated[
    str | None, typer.Option("--strategy", help="evolution or random.", rich_help_panel=SEARCH)
]


def evolve_metric(
    out: Out,
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    calibration_text: CalibrationSpec = "wikitext2",
    sparsity: Sparsity = 0.5,
    pattern: PatternOption = "layer",
    windows: Windows = 8,
    window_length: WindowLength = 512,
    calibration_samples: Samples = 16,
    dtype: DTypeOption = DType.auto,
    preset: Preset = "quick",
    population: Population = None,
    generations: Generations = None,
    strategy: Strategy = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    rivals: RivalsOption = Rivals.all,
    json: Json = False,
) -> None:
    """Evolve a pruning metric on a model, starting from the published ones and random formulas."""
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    goal = MetricGoal(texts, model, sparsity, pattern, str(dtype))
    settings = _settings(preset, population, generations, strategy, time_limit, seed)
    _begin(out, goal, settings, rivals, json)


def evolve_allocation(
    out: Out,
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    calibration_text: CalibrationSpec = "wikitext2",
    metric: MetricOption = "wanda",
    sparsity: Sparsity = 0.7,
    pattern: OwnPattern = None,
    unit: UnitOption = Unit.layer,
    windows: Windows = LAYERED_WINDOWS,
    window_length: WindowLength = LAYERED_LENGTH,
    calibration_samples: Samples = LAYERED_SAMPLES,
    dtype: DTypeOption = DType.auto,
    preset: Preset = "allocation",
    population: Population = None,
    generations: Generations = None,
    strategy: Strategy = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    rivals: RivalsOption = Rivals.all,
    json: Json = False,
) -> None:
    """Evolve how sparsity is shared out over layers, starting from the published allocations."""
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    named_formula(metric)
    way = pattern_of(metric, pattern)
    goal = AllocationGoal(texts, model, sparsity, way, str(dtype), metric=metric, unit=str(unit))
    settings = _settings(preset, population, generations, strategy, time_limit, seed)
    _begin(out, goal, settings, rivals, json)


def evolve_joint(
    out: Out,
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    calibration_text: CalibrationSpec = "wikitext2",
    sparsity: Sparsity = 0.5,
    pattern: PatternOption = "layer",
    unit: UnitOption = Unit.layer,
    windows: Windows = LAYERED_WINDOWS,
    window_length: WindowLength = LAYERED_LENGTH,
    calibration_samples: Samples = LAYERED_SAMPLES,
    dtype: DTypeOption = DType.auto,
    preset: Preset = "allocation",
    population: Population = None,
    generations: Generations = None,
    strategy: Strategy = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    rivals: RivalsOption = Rivals.all,
    json: Json = False,
) -> None:
    """Evolve a metric and an allocation together, starting from pairs of published ones."""
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    goal = JointGoal(texts, model, sparsity, pattern, str(dtype), unit=str(unit))
    settings = _settings(preset, population, generations, strategy, time_limit, seed)
    _begin(out, goal, settings, rivals, json)


def _begin(out: Path, goal: Goal, settings: SearchSettings, rivals: Rivals, json: bool) -> None:
    """Make a run directory, once nothing can fail for want of a model or text, and search."""
    parse_pattern(goal.pattern).target(goal.sparsity)
    check_output(out)
    with progress() as report:
        bench = _ready(goal, report)
    with RunDirectory.create(out, settings, goal.stored()) as run:
        _search(run, goal, bench, settings, rivals, json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    generations: Annotated[
        int | None, typer.Option("--generations", help="Go on to this many.", min=0)
    ] = None,
    time_limit: TimeLimit = None,
    rivals: RivalsOption = Rivals.all,
    json: Json = False,
) -> None:
    """Go on with a search that was broken off, or extend a finished one."""
    with RunDirectory.open(run) as opened:
        goal = restored(opened.problem, run)
        changes: dict[str, Any] = {"time_limit": _seconds(time_limit)}
        if generations is not None:
            changes["generations"] = generations
        settings = opened.search.replaced(**changes)
        with progress() as report:
            bench = _ready(goal, report)
        _search(opened, goal, bench, settings, rivals, json)


def _ready(goal: Goal, report: Any) -> Workbench:
    """Everything that can fail for want of a model or text, before a run directory is made."""
    texts = goal.texts
    reads = [(texts.text, "validation"), (texts.calibration_text, "calibration")]
    bench = Workbench(goal.model, goal.dtype, texts, report, reads=reads, terminals=goal.terminals)
    bench.check_pattern(goal.pattern)
    bench.test_windows(spread=goal.spread)
    bench.windows("validation", spread=goal.spread)
    _ = bench.statistics
    return bench


def _search(
    run: RunDirectory,
    goal: Goal,
    bench: Workbench,
    settings: SearchSettings,
    rivals: Rivals,
    json: bool,
) -> None:
    with progress() as report:
        bench.report = report
        fitness = goal.fitness(bench)
    try:
        with SearchProgress(settings, goal.language) as observer:
            result = evolve(
                goal.language,
                fitness,
                settings=settings,
                seeds=goal.seeds(),
                canonical=goal.canonical,
                fingerprint=fitness.fingerprint,
                run=run,
                observer=observer,
            )
        _tell(result, run, settings)
        with progress() as report:
            bench.report = report
            all_rivals = rivals == Rivals.all
            document = describe(result, goal, bench, fitness, run.path, all_rivals=all_rivals)
    except GppruneError:
        raise
    except BaseException:
        err.print(
            f"the run is kept: go on with `{_again(run, settings)}`",
            highlight=False,
            soft_wrap=True,
        )
        raise
    write_report(document, goal, run.path)
    if json:
        print_json(document)
    else:
        print_report(document)


def _again(run: RunDirectory, settings: SearchSettings) -> str:
    """The command that goes on with a run, escaped for rich."""
    more = ""
    if settings.generations != run.search.generations:
        more = f" --generations {settings.generations}"
    return escape(f"gpprune resume {shlex.quote(str(run.path))}{more}")


def _tell(result: SearchResult, run: RunDirectory, settings: SearchSettings) -> None:
    if result.stopped:
        err.print(
            f"stopped by the {result.stopped} after {result.generations} generations; "
            f"go on with `{_again(run, settings)}`",
            highlight=False,
            soft_wrap=True,
        )


def _settings(
    preset: str,
    population: int | None,
    generations: int | None,
    strategy: str | None,
    time_limit: str | None,
    seed: int,
) -> SearchSettings:
    if preset not in PRESETS:
        raise UsageError(f"unknown --preset {preset!r}; there are {', '.join(PRESETS)}")
    given = {
        "population": population,
        "generations": generations,
        "strategy": strategy,
        "time_limit": _seconds(time_limit),
        "seed": seed,
    }
    return PRESETS[preset].replaced(**{k: v for k, v in given.items() if v is not None})


def _seconds(limit: str | None) -> float | None:
    if limit is None:
        return None
    match = _LIMIT.fullmatch(limit.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--time-limit {limit!r} is not a duration: write for example 90s or 20m")
    return float(match[1]) * _SECONDS[match[2]]
