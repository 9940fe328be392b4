"""`gpprune eval`: the perplexity of a model."""

from __future__ import annotations

import time

from gpprune.cli.console import print_json, print_table, progress
from gpprune.cli.options import (
    DType,
    DTypeOption,
    Json,
    ModelSpec,
    Split,
    SplitOption,
    TextSpec,
    WindowLength,
    Windows,
)
from gpprune.cli.problem import TEST_LENGTH, TEST_WINDOWS, Texts, Workbench


def evaluate(
    model: ModelSpec = "smollm2",
    text: TextSpec = "wikitext2",
    split: SplitOption = Split.test,
    windows: Windows = TEST_WINDOWS,
    window_length: WindowLength = TEST_LENGTH,
    dtype: DTypeOption = DType.auto,
    json: Json = False,
) -> None:
    """Perplexity of a model on the first windows of a text."""
    texts = Texts(text=text, windows=windows, window_length=window_length)
    with progress() as report:
        bench = Workbench(model, dtype, texts, report, reads=[(text, split)])
        chosen = bench.windows(split)
        start = time.perf_counter()
        judgement = bench.dense(chosen)
    row = {
        "model": model,
        "text": text,
        "split": str(split),
        "perplexity": judgement.perplexity,
        "nll": judgement.nll,
        "windows": windows,
        "window_length": window_length,
        "dtype": str(bench.dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - start, 2),
    }
    if json:
        print_json(row)
        return
    shown = {**row, "perplexity": f"{judgement.perplexity:.3f}", "nll": f"{judgement.nll:.4f}"}
    print_table(["of", "is"], [[name, str(value)] for name, value in shown.items()])
