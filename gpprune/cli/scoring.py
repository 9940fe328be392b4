"""`gpprune score`: named or given formulas side by side."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from gpprune.cli.console import print_json, print_table, progress
from gpprune.cli.options import (
    CalibrationSpec,
    DType,
    DTypeOption,
    Json,
    ModelSpec,
    Order,
    OrderOption,
    Samples,
    Seed,
    Split,
    SplitOption,
    TextSpec,
    WindowLength,
    Windows,
)
from gpprune.cli.problem import (
    TEST_LENGTH,
    TEST_WINDOWS,
    Texts,
    Workbench,
    formulas,
    pattern_of,
    sparsities,
)
from gpprune.compile import render
from gpprune.evals import Judgement, MetricFitness
from gpprune.primitives import Formula
from gpprune.prune import Recipe, parse_pattern


def score_metrics(
    metrics: Annotated[
        list[str] | None,
        typer.Argument(help="Published names or formula text; all published ones by default."),
    ] = None,
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    calibration_text: CalibrationSpec = "wikitext2",
    split: SplitOption = Split.test,
    sparsity: Annotated[
        str, typer.Option("--sparsity", help="One or more shares, as 0.5,0.6.")
    ] = "0.5",
    pattern: Annotated[
        str | None,
        typer.Option("--pattern", help="row, rows:N, layer or N:M; by default each metric's own."),
    ] = None,
    windows: Windows = TEST_WINDOWS,
    window_length: WindowLength = TEST_LENGTH,
    calibration_samples: Samples = 8,
    order: OrderOption = Order.dense,
    dtype: DTypeOption = DType.auto,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Perplexity of the model pruned by each metric, beside the dense model."""
    chosen = formulas(metrics)
    levels = sparsities(sparsity)
    for level in levels:
        for name in chosen:
            parse_pattern(pattern_of(name, pattern)).target(level)
    texts = Texts(text, calibration_text, windows, window_length, calibration_samples, seed)
    names = frozenset[str]().union(*(formula.names for formula in chosen.values()))
    with progress() as report:
        reads = [(text, split), (calibration_text, "calibration")]
        bench = Workbench(
            model,
            dtype,
            texts,
            report,
            reads=reads,
            terminals=names,
        )
        for name in chosen:
            bench.check_pattern(pattern_of(name, pattern))
        tokens = bench.windows(split)
        start = time.perf_counter()
        rows = [_row("dense", None, 0.0, None, bench.dense(tokens), start)]
        for level in levels:
            judges: dict[str, MetricFitness] = {}
            for done, (name, formula) in enumerate(chosen.items()):
                report(f"scoring at {level:g}", done, len(chosen))
                way = pattern_of(name, pattern)
                start = time.perf_counter()
                if order == Order.sequential:
                    recipe = Recipe(metric=formula.text, sparsity=level, pattern=way)
                    judgement = bench.pruned(recipe, tokens)
                else:
                    if way not in judges:
                        judges[way] = bench.fitness(tokens, level, way)
                    form = formula.canonical(parse_pattern(way).group)
                    (judgement,) = judges[way].judge(form, tokens)
                rows.append(_row(name, formula, level, way, judgement, start))
            report(f"scoring at {level:g}", len(chosen), len(chosen))
    if json:
        print_json(rows)
        return
    columns = ["metric", "pattern", "sparsity", "perplexity", "nll", "closed form"]
    shown = [
        [
            row["name"],
            row["pattern"] or "",
            f"{row['sparsity']:g}",
            f"{row['perplexity']:.2f}",
            f"{row['nll']:.4f}",
            render(chosen[row["name"]].canonical(None), "line") if row["formula"] else "",
        ]
        for row in rows
    ]
    title = f"{model}, {text} {split}, {windows} windows of {window_length}, {order} calibration"
    print_table(columns, shown, title=title, numbers=["sparsity", "perplexity", "nll"])


def _row(
    name: str,
    formula: Formula | None,
    sparsity: float,
    pattern: str | None,
    judgement: Judgement,
    start: float,
) -> dict[str, Any]:
    return {
        "name": name,
        "formula": formula.text if formula else None,
        "key": formula.key if formula else None,
        "sparsity": sparsity,
        "pattern": pattern,
        "perplexity": judgement.perplexity,
        "nll": judgement.nll,
        "windows": len(judgement.losses),
        "seconds": round(time.perf_counter() - start, 2),
    }
