"""`gpprune eval`: how good a model is."""

from __future__ import annotations

from gpprune.cli import options
from gpprune.cli.console import print_json, print_table, progress
from gpprune.discover import Texts, evaluate_model
from gpprune.discover.workbench import TEST_LENGTH, TEST_WINDOWS
from gpprune.evals import NEXT_TOKEN


def evaluate(
    model: options.ModelSpec = "smollm2",
    text: options.TextSpec = "wikitext2",
    split: options.SplitOption = options.Split.test,
    windows: options.Windows = TEST_WINDOWS,
    window_length: options.WindowLength = TEST_LENGTH,
    loss: options.LossOption = NEXT_TOKEN.name,
    dtype: options.DTypeOption = options.DType.auto,
    json: options.Json = False,
) -> None:
    """Judge a model on the first windows of a text: its perplexity, or another loss."""
    texts = Texts(text=text, windows=windows, window_length=window_length)
    with progress() as report:
        found, judged_in = evaluate_model(
            model, texts=texts, split=split, dtype=dtype, loss=loss, progress=report
        )
    evaluation = found.evaluation
    row = {
        "model": model,
        "text": text,
        "split": str(split),
        **evaluation.as_dict(),
        "window_length": window_length,
        "dtype": judged_in,
        "seconds": round(found.seconds, 2),
    }
    if json:
        print_json(row)
        return
    figures = {
        evaluation.loss.figure: f"{evaluation.figure:.3f}",
        evaluation.loss.mean: f"{evaluation.mean:.4f}",
    }
    print_table(["of", "is"], [[name, str(value)] for name, value in {**row, **figures}.items()])
