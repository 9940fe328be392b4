"""`gpprune prune`: a pruned checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpprune.cli.console import print_json, print_table, progress
from gpprune.cli.options import (
    CalibrationSpec,
    Json,
    ModelSpec,
    Order,
    OrderOption,
    Out,
    Samples,
    Seed,
    Unit,
    WindowLength,
)
from gpprune.cli.problem import TEST_LENGTH, Texts, Workbench
from gpprune.errors import UsageError
from gpprune.prune import Recipe, check_output, parse_pattern, prune_model, save_pruned


def prune(
    out: Out,
    model: ModelSpec = "smollm2",
    metric: Annotated[
        str | None, typer.Option("--metric", help="A published metric or formula text.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of weights to prune, [0, 1).")
    ] = None,
    pattern: Annotated[
        str | None, typer.Option("--pattern", help="row, rows:N, layer, or N:M (2:4).")
    ] = None,
    allocation: Annotated[
        str | None,
        typer.Option("--allocation", help="A published allocation, besa, or formula text."),
    ] = None,
    unit: Annotated[
        Unit | None,
        typer.Option("--unit", metavar="UNIT", help="layer or block, for --allocation."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="A recipe (JSON) in place of --metric and the like."),
    ] = None,
    calibration_text: CalibrationSpec = "wikitext2",
    calibration_samples: Samples = 8,
    window_length: WindowLength = TEST_LENGTH,
    seed: Seed = 0,
    order: OrderOption = Order.sequential,
    json: Json = False,
) -> None:
    """Prune a model and write it as a Hugging Face checkpoint (safetensors) with its recipe."""
    check_output(out)
    chosen = _recipe(recipe, metric, sparsity, pattern, allocation, unit)
    texts = Texts(
        calibration_text=calibration_text,
        calibration_samples=calibration_samples,
        window_length=window_length,
        seed=seed,
    )
    with progress() as report:
        bench = Workbench(
            model, "float32", texts, report, reads=[(calibration_text, "calibration")]
        )
        outcome = prune_model(
            bench.loaded.model, chosen, bench.calibration(), order=order, progress=report
        )
        save_pruned(bench.loaded, chosen, outcome, out)
    if json:
        print_json({"out": str(out), "recipe": chosen.model_dump(), **outcome.as_dict()})
        return
    rows = [
        [layer.name, f"{layer.zeros:,}", f"{layer.size:,}", f"{layer.sparsity:.4f}"]
        for layer in outcome.layers
    ]
    rows.append(["all", f"{outcome.zeros:,}", f"{outcome.size:,}", f"{outcome.sparsity:.4f}"])
    columns = ["layer", "zeros", "weights", "sparsity"]
    print_table(columns, rows, title=f"{chosen.metric} -> {out}", numbers=columns[1:])


def _recipe(
    recipe: Path | None,
    metric: str | None,
    sparsity: float | None,
    pattern: str | None,
    allocation: str | None,
    unit: Unit | None,
) -> Recipe:
    if recipe is None:
        pattern = pattern or "row"
        default = 0.5 if sparsity is None and parse_pattern(pattern).sparsity is None else sparsity
        return Recipe.make(
            metric=metric, sparsity=default, pattern=pattern, allocation=allocation, unit=unit
        )
    given: dict[str, object] = {"--metric": metric, "--sparsity": sparsity, "--pattern": pattern}
    given |= {"--allocation": allocation, "--unit": unit}
    for flag, value in given.items():
        if value is not None:
            raise UsageError(f"{flag} {value} and --recipe {recipe} exclude one another: give one")
    return Recipe.read(recipe)
