"""`gpprune score` and `gpprune transfer`: formulas side by side, on one model or on several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import (
    going_on,
    print_json,
    print_shown,
    progress,
    tell,
    tell_left_alone,
    tell_written,
)
from gpprune.discover import (
    Texts,
    allocation_contenders,
    carry_over,
    compare_recipes,
    metric_contenders,
)
from gpprune.discover.contenders import levels
from gpprune.discover.plots import check_picture, save_figure, transfer_figure
from gpprune.discover.texts import TEST_LENGTH, TEST_WINDOWS
from gpprune.discover.transfer.carry_over import figures_kept
from gpprune.evals import NEXT_TOKEN

_WHAT = typer.Argument(
    metavar="WHAT...", help="Run directories, recipes, published names or formula text."
)
_METRICS = typer.Argument(
    help="Published names or formula text; all published ones by default.", metavar="METRICS"
)
_MODELS = typer.Option("--model", help="Where they are judged, the first for comparison; repeated.")
_TASKS = typer.Option(help="Judged on after the texts: piqa,hellaswag or others.")
_PATTERNS = typer.Option("--pattern", help="What competes, by default as found; may be repeated.")
_AGAINST = typer.Option(help="Published formulas beside them, by default all; may be repeated.")
_TOP = typer.Option(help="How many of a run's best formulas.", min=1)
_OUT = typer.Option(help="Written: JSON with every window's loss.")


def _score(
    kind: str,
    allocations: options.Allocations = None,
    model: options.ModelSpec = "smollm2",
    text: options.TextSpec = "wikitext2",
    calibration_text: options.CalibrationSpec = "wikitext2",
    split: options.SplitOption = options.Split.test,
    metric: options.MetricOption = "wanda",
    sparsity: options.Levels = None,
    pattern: options.OwnPattern = None,
    unit: options.GivenUnit = None,
    update: options.UpdateOption = "none",
    damp_inputs: options.DampInputs = None,
    damp_outputs: options.DampOutputs = None,
    permute: options.Permute = None,
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    calibration_samples: options.Samples = 8,
    order: options.OrderOption = "dense",
    loss: options.LossOption = NEXT_TOKEN.name,
    task_data: options.TaskData = None,
    dtype: options.DTypeOption = options.DType.auto,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    how: dict[str, Any] = {"sparsity": levels(sparsity), "pattern": pattern, "update": update}
    how |= {"damp_inputs": damp_inputs, "damp_outputs": damp_outputs}
    if kind == "metrics":
        contenders = metric_contenders(allocations, permute=permute, **how)
    else:
        contenders = allocation_contenders(allocations, metric, unit=unit, **how)
    amounts = (windows, window_length, calibration_samples, seed)
    texts = Texts(text, calibration_text, *amounts, task_data)
    on: dict[str, Any] = {"model": model, "texts": texts, "split": split, "dtype": dtype}
    with progress() as report:
        found = compare_recipes(contenders, order=order, loss=loss, progress=report, **on)
    tell_left_alone(found.coverage)
    if json:
        print_json([row.as_dict() for row in found.rows])
    else:
        print_shown(found.of_metrics() if kind == "metrics" else found.of_allocations(metric))


score_metrics = options.with_defaults(
    _score,
    "Judge the model pruned by each metric, beside the dense model.",
    {"kind": "metrics", "metric": "", "unit": None},
    {"allocations": Annotated[list[str] | None, _METRICS]},
)
score_allocations = options.with_defaults(
    _score,
    "Judge the model under each allocation of the sparsity, beside the dense model.",
    {"kind": "allocations", "permute": None},
)


def transfer(
    what: Annotated[list[str], _WHAT],
    model: Annotated[list[str], _MODELS] = ["smollm2"],  # noqa: B006
    text: options.SeveralTexts = ["wikitext2"],  # noqa: B006
    tasks: Annotated[str | None, _TASKS] = None,
    task_data: options.TaskData = None,
    calibration_text: options.CalibrationSpec = "wikitext2",
    split: options.SplitOption = options.Split.test,
    sparsity: options.Levels = None,
    pattern: Annotated[list[str] | None, _PATTERNS] = None,
    against: Annotated[list[str] | None, _AGAINST] = None,
    top: Annotated[int, _TOP] = 1,
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    calibration_samples: options.Samples = 8,
    order: options.OrderOption = "dense",
    dtype: options.DTypeOption = options.DType.auto,
    out: Annotated[Path | None, _OUT] = None,
    plot: options.Plot = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Judge formulas on other models, texts, sparsities and patterns than they were found on."""
    if plot is not None:
        check_picture(plot)
    amounts = (windows, window_length, calibration_samples, seed)
    on = Texts(text[0], calibration_text, *amounts, task_data)
    how: dict[str, Any] = {"models": model, "texts": text, "patterns": pattern, "split": split}
    how |= {"tasks": [] if tasks is None else tasks.replace(" ", "").split(",")}
    how |= {"against": against, "top": top, "order": order, "dtype": dtype, "out": out}
    with progress() as report, going_on(lambda: figures_kept(out)):
        found = carry_over(what, sparsity=levels(sparsity), on=on, progress=report, **how)
    pictures = [] if plot is None else save_figure(transfer_figure(found), plot)
    for sentence in found.left:
        tell(sentence)
    if json:
        print_json(found.as_dict())
        return
    for table in found.tables():
        print_shown(table)
    tell_written(pictures)
