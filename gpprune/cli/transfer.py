"""`gpprune transfer`: what formulas do where they were not found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gpprune.cli import options
from gpprune.cli.console import going_on, print_json, print_shown, progress, tell, tell_written
from gpprune.discover import Texts, carry_over
from gpprune.discover.contenders import levels
from gpprune.discover.plots import check_picture, save_figure, transfer_figure
from gpprune.discover.transfer.carry_over import figures_kept
from gpprune.discover.workbench import TEST_LENGTH, TEST_WINDOWS

_WHAT = typer.Argument(
    metavar="WHAT...", help="Run directories, recipes, published names or formula text."
)
_MODELS = typer.Option("--model", help="Where they are judged, the first for comparison; repeated.")
_TEXTS = typer.Option("--text", help="Judged on: as for other commands; may be repeated.")
_PATTERNS = typer.Option("--pattern", help="What competes, by default as found; may be repeated.")
_AGAINST = typer.Option(help="Published formulas beside them, by default all; may be repeated.")
_TOP = typer.Option(help="How many of a run's best formulas.", min=1)
_OUT = typer.Option(help="Written: JSON with every window's loss.")


def transfer(
    what: Annotated[list[str], _WHAT],
    model: Annotated[list[str], _MODELS] = ["smollm2"],  # noqa: B006
    text: Annotated[list[str], _TEXTS] = ["wikitext2"],  # noqa: B006
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
    on = Texts(text[0], calibration_text, windows, window_length, calibration_samples, seed)
    how: dict[str, Any] = {"models": model, "texts": text, "patterns": pattern, "split": split}
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
