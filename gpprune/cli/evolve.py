"""`gpprune evolve` and `gpprune resume`: search for a metric on a model, and say what it found."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import GppruneError, UsageError
from ..gp import PRESETS, RunDirectory, SearchResult, SearchSettings, evolve
from ..primitives import METRIC, Formula, published
from ..prune import check_output, parse_pattern
from .console import err, escape, print_json, progress
from .live import SearchProgress
from .options import (
    SEARCH,
    CalibrationSpec,
    DType,
    DTypeOption,
    Json,
    ModelSpec,
    Out,
    PatternOption,
    Samples,
    Seed,
    Sparsity,
    TextSpec,
    WindowLength,
    Windows,
)
from .problem import MetricProblem, Texts, Workbench
from .report import describe, print_report, write_report

_LIMIT = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

TimeLimit = Annotated[
    str | None,
    typer.Option("--time-limit", help="Stop after so long: 90s, 20m, 1h.", rich_help_panel=SEARCH),
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
    preset: Annotated[
        str, typer.Option("--preset", help=f"One of {', '.join(PRESETS)}.", rich_help_panel=SEARCH)
    ] = "quick",
    population: Annotated[
        int | None, typer.Option("--population", help="Formulas kept.", rich_help_panel=SEARCH)
    ] = None,
    generations: Annotated[
        int | None,
        typer.Option("--generations", help="Rounds of variation.", rich_help_panel=SEARCH),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option("--strategy", help="evolution or random.", rich_help_panel=SEARCH),
    ] = None,
    time_limit: TimeLimit = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Evolve a pruning metric on a model, starting from the published ones and random formulas."""
    settings = _settings(preset, population, generations, strategy, time_limit, seed)
    parse_pattern(pattern).target(sparsity)
    check_output(out)
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    problem = MetricProblem(
        texts=texts, model=model, sparsity=sparsity, pattern=pattern, dtype=str(dtype)
    )
    with progress() as report:
        bench = _ready(problem, report)
    with RunDirectory.create(out, settings, problem.stored()) as run:
        _search(run, problem, bench, settings, json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    generations: Annotated[
        int | None, typer.Option("--generations", help="Go on to this many.", min=0)
    ] = None,
    time_limit: TimeLimit = None,
    json: Json = False,
) -> None:
    """Go on with a search that was broken off, or extend a finished one."""
    with RunDirectory.open(run) as opened:
        problem = MetricProblem.restored(opened.problem, run)
        changes: dict[str, Any] = {"time_limit": _seconds(time_limit)}
        if generations is not None:
            changes["generations"] = generations
        settings = opened.search.replaced(**changes)
        with progress() as report:
            bench = _ready(problem, report)
        _search(opened, problem, bench, settings, json)


def _ready(problem: MetricProblem, report: Any) -> Workbench:
    """Everything that can fail for want of a model or text, before a run directory is made."""
    texts = problem.texts
    reads = [(texts.text, "validation"), (texts.calibration_text, "calibration")]
    bench = Workbench(problem.model, problem.dtype, texts, report, reads=reads)
    bench.windows("validation")
    bench.test_windows()
    _ = bench.statistics
    return bench


def _search(
    run: RunDirectory,
    problem: MetricProblem,
    bench: Workbench,
    settings: SearchSettings,
    json: bool,
) -> None:
    fitness = bench.fitness(bench.windows("validation"), problem.sparsity, problem.pattern)
    group = parse_pattern(problem.pattern).group

    def canonical(formula: Formula) -> Formula:
        return formula.canonical(group)

    try:
        with SearchProgress(settings) as observer:
            result = evolve(
                METRIC,
                fitness,
                settings=settings,
                seeds=published,
                canonical=canonical,
                run=run,
                observer=observer,
            )
        _tell(result, run, settings)
        with progress() as report:
            bench.report = report
            document = describe(result, problem, bench, run.path)
    except GppruneError:
        raise
    except BaseException:
        err.print(
            f"the run is kept: go on with `{_again(run, settings)}`",
            highlight=False,
            soft_wrap=True,
        )
        raise
    write_report(document, run.path)
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
