"""`gpprune score allocations` and `gpprune allocate`: how a sparsity is shared out over layers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli.console import escape, out, print_json, print_table, progress
from gpprune.cli.named import AllocationBench, Named, allocation_workbench, named_allocations
from gpprune.cli.options import (
    CalibrationSpec,
    DType,
    DTypeOption,
    Json,
    MetricOption,
    ModelSpec,
    Order,
    OrderOption,
    OwnPattern,
    Samples,
    Seed,
    Split,
    SplitOption,
    TextSpec,
    Unit,
    WindowLength,
    Windows,
)
from gpprune.cli.plots import plot_allocations
from gpprune.cli.problem import (
    TEST_LENGTH,
    TEST_WINDOWS,
    Texts,
    named_formula,
    pattern_of,
    sparsities,
)
from gpprune.compile import render
from gpprune.evals import Judgement
from gpprune.prune import Recipe, linear_layers, parse_pattern

_HELP = (
    "Published names (with parameters: owl(7,0.05), atp(0.3)), besa, DSA graphs, formula text, "
    "run directories (their best), label=any of these; all published ones by default."
)
Allocations = Annotated[list[str] | None, typer.Argument(help=_HELP)]
GivenUnit = Annotated[
    Unit | None,
    typer.Option(
        "--unit", metavar="UNIT", help="layer or block; by default each allocation's own, or layer."
    ),
]


def score_allocations(
    allocations: Allocations = None,
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    calibration_text: CalibrationSpec = "wikitext2",
    split: SplitOption = Split.test,
    metric: MetricOption = "wanda",
    sparsity: Annotated[
        str, typer.Option("--sparsity", help="One or more shares, as 0.6,0.7.")
    ] = "0.7",
    pattern: OwnPattern = None,
    unit: GivenUnit = None,
    windows: Windows = TEST_WINDOWS,
    window_length: WindowLength = TEST_LENGTH,
    calibration_samples: Samples = 8,
    order: OrderOption = Order.dense,
    dtype: DTypeOption = DType.auto,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Perplexity of the model under each allocation of the sparsity, beside the dense model."""
    chosen = named_allocations(allocations, unit)
    levels = sparsities(sparsity)
    way = _pattern(metric, pattern, levels)
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    with progress() as report:
        bench = allocation_workbench(model, dtype, texts, report, chosen, metric, [(text, split)])
        bench.check_pattern(way)
        tokens = bench.windows(split)
        start = time.perf_counter()
        rows = [_row(None, None, 0.0, None, bench.dense(tokens), start)]
        judge = None if order == Order.sequential else AllocationBench(bench, tokens, metric, way)
        for level in levels:
            for done, named in enumerate(chosen):
                report(f"scoring at {level:g}", done, len(chosen))
                start = time.perf_counter()
                if judge is None:
                    recipe = Recipe(
                        metric=named_formula(metric).text,
                        allocation=named.text,
                        unit=named.unit,
                        sparsity=level,
                        pattern=way,
                    )
                    judgement = bench.pruned(recipe, tokens)
                else:
                    judgement = judge.fitness.judge_zeros(judge.zeros(named, level), tokens)
                rows.append(_row(named, metric, level, way, judgement, start))
            report(f"scoring at {level:g}", len(chosen), len(chosen))
    if json:
        print_json(rows)
        return
    title = (
        f"{model} pruned by {metric}, {text} {split}, {windows} windows of {window_length}, "
        f"{order} calibration: perplexity (dense {rows[0]['perplexity']:.2f})"
    )
    shares = [f"{level:g}" for level in levels]
    table = [
        [named.name, named.unit]
        + [f"{row['perplexity']:.2f}" for row in rows if row["name"] == named.name]
        for named in chosen
    ]
    print_table(["allocation", "unit", *shares], table, title=title, numbers=shares)


def allocate(
    allocations: Allocations = None,
    model: ModelSpec = "smollm2",
    calibration_text: CalibrationSpec = "wikitext2",
    metric: MetricOption = "wanda",
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", help="Share of weights to prune, [0, 1).")
    ] = None,
    pattern: OwnPattern = None,
    unit: GivenUnit = None,
    window_length: WindowLength = TEST_LENGTH,
    calibration_samples: Samples = 8,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw it too: PATH.png and PATH.svg.", metavar="PATH"),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Show the sparsity of every decoder block under each allocation, side by side."""
    chosen = named_allocations(allocations, unit)
    way = pattern_of(metric, pattern)
    default = 0.7 if sparsity is None and parse_pattern(way).sparsity is None else sparsity
    level = parse_pattern(way).target(default)
    texts = Texts(
        calibration_text=calibration_text,
        window_length=window_length,
        calibration_samples=calibration_samples,
        seed=seed,
    )
    with progress() as report:
        bench = allocation_workbench(model, DType.float32, texts, report, chosen, metric, [])
        bench.check_pattern(way)
        layers = linear_layers(bench.loaded.model)
        judge = AllocationBench(bench, bench.calibration(), metric, way)
        rows: list[dict[str, Any]] = []
        for done, named in enumerate(chosen):
            report("allocating", done, len(chosen))
            zeros = judge.zeros(named, level)
            shares = judge.fitness.layer_sparsities(zeros)
            rows.append(
                {
                    "name": named.name,
                    "formula": named.text,
                    "unit": named.unit,
                    "sparsity": level,
                    "zeros": int(zeros.sum()),
                    "layers": dict(zip(layers, shares, strict=True)),
                }
            )
        report("allocating", len(chosen), len(chosen))
    sizes = [layer.weight.numel() for layer in layers.values()]
    blocks = [layer.block for layer in layers.values()]
    pictures: list[Path] = []
    if plot is not None:
        pictures = plot_allocations(
            {str(row["name"]): list(row["layers"].values()) for row in rows},
            [layer.role for layer in layers.values()],
            blocks,
            sizes,
            level,
            plot,
            f"{model}, {metric} at {level:g}",
        )
    if json:
        print_json(rows)
        return
    _print_blocks(rows, blocks, sizes, f"{model}, {metric}: sparsity of each decoder block, in %")
    for picture in pictures:
        print(picture)


_WIDEST = 14  # of a column's name


def _print_blocks(
    rows: list[dict[str, Any]], blocks: list[int], sizes: list[int], title: str
) -> None:
    names = [
        row["name"] if len(row["name"]) <= _WIDEST else f"#{number}"
        for number, row in enumerate(rows, start=1)
    ]
    table = []
    for block in [*sorted(set(blocks)), None]:
        inside = [at for at, own in enumerate(blocks) if block is None or own == block]
        weights = sum(sizes[at] for at in inside)
        cells = ["all" if block is None else str(block)]
        for row in rows:
            shares = list(row["layers"].values())
            pruned = sum(shares[at] * sizes[at] for at in inside)
            cells.append(f"{100 * pruned / weights:.1f}")
        table.append(cells)
    columns = ["block", *names]
    print_table(columns, table, title=title, numbers=columns, lines=False)
    for name, row in zip(names, rows, strict=True):
        if name != row["name"]:
            out.print(f"{name}  {escape(row['name'])}", highlight=False)


def _pattern(metric: str, pattern: str | None, levels: list[float]) -> str:
    """The pattern, seen to suit every level before anything is loaded."""
    way = pattern_of(metric, pattern)
    for level in levels:
        parse_pattern(way).target(level)
    return way


def _row(
    named: Named | None,
    metric: str | None,
    level: float,
    pattern: str | None,
    judgement: Judgement,
    start: float,
) -> dict[str, Any]:
    formula = named.formula if named is not None else None
    return {
        "name": named.name if named is not None else "dense",
        "formula": formula.text if formula is not None else None,
        "key": formula.key if formula is not None else None,
        "closed_form": render(formula.canonical(None), "line") if formula is not None else None,
        "unit": named.unit if named is not None else None,
        "metric": metric,
        "sparsity": level,
        "pattern": pattern,
        "perplexity": judgement.perplexity,
        "nll": judgement.nll,
        "windows": len(judgement.losses),
        "seconds": round(time.perf_counter() - start, 2),
    }
