"""`gpprune score`: metrics or allocations side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_shown, progress, tell_left_alone
from gpprune.discover import (
    Comparison,
    Contender,
    Texts,
    allocation_contenders,
    compare_recipes,
    metric_contenders,
)
from gpprune.discover.contenders import levels
from gpprune.discover.workbench import TEST_LENGTH, TEST_WINDOWS
from gpprune.evals import NEXT_TOKEN


def score_metrics(
    metrics: Annotated[
        list[str] | None,
        typer.Argument(help="Published names or formula text; all published ones by default."),
    ] = None,
    model: options.ModelSpec = "smollm2",
    text: options.TextSpec = "wikitext2",
    calibration_text: options.CalibrationSpec = "wikitext2",
    split: options.SplitOption = options.Split.test,
    sparsity: options.Levels = None,
    pattern: options.OwnPattern = None,
    update: options.UpdateOption = "none",
    damp_inputs: options.DampInputs = None,
    damp_outputs: options.DampOutputs = None,
    permute: options.Permute = None,
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    calibration_samples: options.Samples = 8,
    order: options.OrderOption = "dense",
    loss: options.LossOption = NEXT_TOKEN.name,
    dtype: options.DTypeOption = options.DType.auto,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Judge the model pruned by each metric, beside the dense model."""
    how = {"update": update, "damp_inputs": damp_inputs, "damp_outputs": damp_outputs}
    contenders = metric_contenders(metrics, levels(sparsity), pattern, permute=permute, **how)
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    on = {"model": model, "texts": texts, "split": split, "dtype": dtype, "loss": loss}
    found = _judged(contenders, json, order=order, **on)
    if not json:
        print_shown(found.of_metrics())


def _judged(contenders: list[Contender], json: bool, **how: Any) -> Comparison:
    """Compare, and print what is the same of all comparisons."""
    with progress() as report:
        found = compare_recipes(contenders, progress=report, **how)
    tell_left_alone(found.coverage)
    if json:
        print_json([row.as_dict() for row in found.rows])
    return found


def score_allocations(
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
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    calibration_samples: options.Samples = 8,
    order: options.OrderOption = "dense",
    loss: options.LossOption = NEXT_TOKEN.name,
    dtype: options.DTypeOption = options.DType.auto,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Judge the model under each allocation of the sparsity, beside the dense model."""
    how = {"update": update, "damp_inputs": damp_inputs, "damp_outputs": damp_outputs}
    contenders = allocation_contenders(allocations, metric, levels(sparsity), pattern, unit, **how)
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    on = {"model": model, "texts": texts, "split": split, "dtype": dtype, "loss": loss}
    found = _judged(contenders, json, order=order, **on)
    if not json:
        print_shown(found.of_allocations(metric))
