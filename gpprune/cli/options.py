"""Flags that mean the same in every command, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.evals import LOSSES
from gpprune.gp import PRESETS
from gpprune.prune import DTYPES, ORDERS, SCHEDULES, UPDATES, use_device
from gpprune.prune.model.sources import known as known_models

SEARCH = "Search"


class Split(StrEnum):
    """Parts of the packaged text; they do not overlap."""

    calibration = "calibration"
    validation = "validation"
    test = "test"


class DType(StrEnum):
    """What a model computes in; auto is bfloat16 where the hardware is fast at it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Rivals(StrEnum):
    """Which published formulas a search's report judges on test text."""

    all = "all"
    best = "best"


class Unit(StrEnum):
    """What has a sparsity of its own."""

    layer = "layer"
    block = "block"


ModelSpec = Annotated[str, typer.Option("--model", help=f"{known_models()}.")]
TextSpec = Annotated[
    str, typer.Option("--text", help="Judged on: wikitext2 (packaged), a file, a datasets id.")
]
SeveralTexts = Annotated[
    list[str], typer.Option("--text", help="Judged on: as for other commands; may be repeated.")
]
CalibrationSpec = Annotated[
    str, typer.Option("--calibration-text", help="Calibrated on: as for --text.")
]
SplitOption = Annotated[
    Split,
    typer.Option("--split", metavar="PART", help="Of --text: calibration, validation or test."),
]
Sparsity = Annotated[float, typer.Option("--sparsity", help="Share of weights to prune, [0, 1).")]
OwnPattern = Annotated[
    str | None,
    typer.Option(
        "--pattern",
        help="What competes: in row, rows:N, cols:N, layer, model, N:M; whole: mlp, heads; if "
        "there is a --metric, else its own.",
    ),
]
MetricOption = Annotated[
    str, typer.Option("--metric", help="Pruned by: a published metric or formula text.")
]
UnitOption = Annotated[
    Unit,
    typer.Option("--unit", metavar="UNIT", help="What gets its own sparsity: layer or block."),
]
Winners = Annotated[
    int,
    typer.Option("--winners", help="Evolved formulas judged on test text.", rich_help_panel=SEARCH),
]
RivalsOption = Annotated[
    Rivals,
    typer.Option(
        "--rivals",
        metavar="WHICH",
        help="Published formulas judged on test text: all, or best (on validation text).",
        rich_help_panel=SEARCH,
    ),
]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes that judge.", min=1)]
Ray = Annotated[
    str | None, typer.Option("--ray", help="Judge on a Ray cluster: auto, HOST:PORT, or local.")
]
Windows = Annotated[int, typer.Option("--windows", help="Windows of text to judge on.", min=1)]
WindowLength = Annotated[
    int, typer.Option("--window-length", help="Tokens a window and a calibration sample.", min=2)
]
Samples = Annotated[
    int, typer.Option("--calibration-samples", help="Sequences to calibrate on.", min=1)
]
Seed = Annotated[int, typer.Option("--seed", help="Fixes every random draw.", min=0)]
DTypeOption = Annotated[
    DType,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="auto, float32 or bfloat16: what the model computes in while it is judged.",
    ),
]
Written = Annotated[str, typer.Option("--dtype", help=f"Written in: auto, {', '.join(DTYPES)}.")]
_ORDER = typer.Option(
    "--order", help=f"How calibration and pruning take turns: {', '.join(ORDERS)}."
)
OrderOption = Annotated[str, _ORDER]
OwnOrder = Annotated[str | None, _ORDER]
ReportOrder = Annotated[
    str | None,
    typer.Option("--order", help="In which the report and the recipe prune under the update."),
]
_LOSS = typer.Option("--loss", help=f"What is measured: {', '.join(LOSSES)}, task:piqa+hellaswag.")
LossOption = Annotated[str, _LOSS]
TaskData = Annotated[
    str | None, typer.Option("--task-data", help="Of tasks: a folder of rows; else the hub's.")
]
TaskDocuments = Annotated[
    int, typer.Option("--per-task-docs", help="Of each task that a search goes by.", min=1)
]
_UPDATE = typer.Option(
    "--update", help=f"Of the weights that stay: {', '.join(UPDATES)}; 'refit(N)': of N steps."
)
GivenUpdate = Annotated[str | None, _UPDATE]
UpdateOption = Annotated[str, _UPDATE]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help="The update that candidates are judged by; none: masks alone; recipe: all that their "
        "recipe does.",
    ),
]
Start = Annotated[
    list[str] | None,
    typer.Option("--start", help="A formula, or a run's best one, to start from; may be repeated."),
]
DampInputs = Annotated[
    float | None,
    typer.Option("--damp-inputs", help="Of the inputs' curvature, a share of its mean diagonal."),
]
DampOutputs = Annotated[
    float | None,
    typer.Option("--damp-outputs", help="The same of the output gradients' curvature."),
]
Permute = Annotated[
    str | None,
    typer.Option("--permute", help="Permute channels first to keep more of it: metric, or a name."),
]
Shots = Annotated[
    int | None, typer.Option("--shots", help="Prune in so many shots, measured again before each.")
]
ScheduleOption = Annotated[
    str | None, typer.Option("--schedule", help=f"How far each shot goes: {', '.join(SCHEDULES)}.")
]
Cap = Annotated[
    float | None, typer.Option("--cap", help="The most that one shot takes of a layer, (0, 1].")
]
IdleExperts = Annotated[
    str | None, typer.Option("--idle-experts", help="If few tokens reach them: share, or dense.")
]
Allocations = Annotated[
    list[str] | None,
    typer.Argument(
        help="Published names (with parameters: owl(7,0.05), atp(0.3)), besa, DSA graphs, formula "
        "text, run directories (their best), label=any of these; all published ones by default.",
    ),
]
GivenUnit = Annotated[
    Unit | None,
    typer.Option(
        "--unit", metavar="UNIT", help="layer or block; by default each allocation's own, or layer."
    ),
]
Levels = Annotated[
    str | None,
    typer.Option("--sparsity", help="Shares, as 0.5,0.6; by default 0.5, of allocations 0.7."),
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Draw it too: PATH.png and PATH.svg.", metavar="PATH")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="A directory that does not exist yet.")]
Device = Annotated[str, typer.Option("--device", help="Of the model: auto, cpu, cuda or cuda:1.")]


def _of_search(flag: str, about: str) -> Any:
    return typer.Option(flag, help=about, rich_help_panel=SEARCH)


TimeLimit = Annotated[
    str | None,
    _of_search("--time-limit", "No longer than: 90s, 20m, 1h. Calibration and report come on top."),
]
Preset = Annotated[str, _of_search("--preset", f"One of {', '.join(PRESETS)}.")]
Population = Annotated[int | None, _of_search("--population", "Formulas kept.")]
Offspring = Annotated[int | None, _of_search("--offspring", "New formulas a generation.")]
Generations = Annotated[int | None, _of_search("--generations", "Rounds of variation.")]
Overlap = Annotated[int | None, _of_search("--overlap", "Generations begun before one has ended.")]
Strategy = Annotated[str | None, _of_search("--strategy", "evolution or random.")]
Select = Annotated[
    str | None, _of_search("--select", "Who survives: fitness, or pareto (loss and length).")
]


def with_defaults(
    command: Callable[..., None],
    about: str,
    fixed: Mapping[str, Any] = {},
    declared: Mapping[str, Any] = {},
    **defaults: Any,
) -> Callable[..., None]:
    """A command with its own help, some flags of which are fixed, or declared in another way."""
    own = signature(command, eval_str=True).parameters.values()
    known = [flag.replace(annotation=declared.get(flag.name, flag.annotation)) for flag in own]
    flags = [flag for flag in known if flag.name not in fixed]

    @wraps(command)
    def run(**given: Any) -> None:
        command(**fixed, **given)

    changed = [flag.replace(default=defaults.get(flag.name, flag.default)) for flag in flags]
    run.__signature__ = Signature(changed)  # type: ignore[attr-defined]
    run.__doc__ = about
    return run


def on_device(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a flag more: the device that its models lie and run on."""
    own = signature(command, eval_str=True)

    @wraps(command)
    def run(device: str, **given: Any) -> None:
        use_device(device)
        command(**given)

    flag = Parameter("device", Parameter.KEYWORD_ONLY, default="auto", annotation=Device)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), flag])  # type: ignore[attr-defined]
    return run


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}
