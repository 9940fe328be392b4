"""`gpprune score`: metrics or allocations side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_table, progress, shown, tell_left_alone
from gpprune.discover import (
    Comparison,
    Contender,
    Texts,
    allocation_contenders,
    compare_recipes,
    metric_contenders,
)
from gpprune.discover.compare import Row, line
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
        _print_metrics(found)


def _judged(contenders: list[Contender], json: bool, **how: Any) -> Comparison:
    """Compare, and print what is the same of all comparisons."""
    with progress() as report:
        found = compare_recipes(contenders, progress=report, **how)
    tell_left_alone(found.coverage)
    if json:
        print_json([row.as_dict() for row in found.rows])
    return found


def _print_metrics(found: Comparison) -> None:
    loss = found.dense.evaluation.loss
    means = [loss.mean] if loss.mean != loss.figure else []
    columns = ["metric", "pattern", "sparsity", loss.figure, *means, "closed form"]
    table = [
        [*_cells(row), *(f"{row.evaluation.mean:.4f}" for _ in means), _closed_form(row)]
        for row in found.rows
    ]
    title = f"{_judged_on(found)}, {found.order} calibration"
    print_table(columns, table, title=title, numbers=["sparsity", loss.figure, *means])


def _cells(row: Row) -> list[str]:
    pattern = "" if row.recipe is None else row.recipe.pattern
    sparsity = 0.0 if row.recipe is None else row.recipe.sparsity
    return [row.name, pattern, f"{sparsity:g}", shown(row.evaluation.figure)]


def _closed_form(row: Row) -> str:
    return "" if row.formula is None else line(row.formula)


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
        _print_allocations(found, metric)


def _print_allocations(found: Comparison, metric: str) -> None:
    dense = found.dense.evaluation
    rows: dict[str, list[Row]] = {}
    for row in found.rows[1:]:
        rows.setdefault(row.name, []).append(row)
    levels = [f"{row.recipe.sparsity:g}" for row in next(iter(rows.values())) if row.recipe]
    table = [
        [name, own[0].recipe.unit if own[0].recipe else ""]
        + [shown(row.evaluation.figure) for row in own]
        for name, own in rows.items()
    ]
    title = (
        f"{found.model} pruned by {metric}, {_judged_on(found, model=False)}, {found.order} "
        f"calibration: {dense.loss.figure} (dense {shown(dense.figure)})"
    )
    print_table(["allocation", "unit", *levels], table, title=title, numbers=levels)


def _judged_on(found: Comparison, *, model: bool = True) -> str:
    texts = found.texts
    windows = f"{texts.text} {found.split}, {texts.windows} windows of {texts.window_length}"
    return f"{found.model}, {windows}" if model else windows
