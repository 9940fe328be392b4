"""`gpprune allocate`: how a sparsity is shared out over a model's decoder blocks."""

from __future__ import annotations

from typing import Annotated

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_table, progress, say, tell_written
from gpprune.discover import Sharing, Texts, share_out
from gpprune.discover.plots import check_picture, save_figure, sharing_figure
from gpprune.discover.texts import TEST_LENGTH

_WIDEST = 14  # of a column's name


def allocate(
    allocations: options.Allocations = None,
    model: options.ModelSpec = "smollm2",
    calibration_text: options.CalibrationSpec = "wikitext2",
    metric: options.MetricOption = "wanda",
    sparsity: Annotated[
        float | None, typer.Option(help="Share of weights to prune, [0, 1).")
    ] = None,
    pattern: options.OwnPattern = None,
    unit: options.GivenUnit = None,
    window_length: options.WindowLength = TEST_LENGTH,
    calibration_samples: options.Samples = 8,
    plot: options.Plot = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Show the sparsity of every decoder block under each allocation, side by side."""
    if plot is not None:
        check_picture(plot)
    texts = Texts(
        calibration_text=calibration_text,
        window_length=window_length,
        calibration_samples=calibration_samples,
        seed=seed,
    )
    with progress() as report:
        found = share_out(
            allocations,
            model=model,
            metric=metric,
            sparsity=sparsity,
            pattern=pattern,
            unit=unit,
            texts=texts,
            progress=report,
        )
    pictures = [] if plot is None else save_figure(sharing_figure(found), plot)
    if json:
        print_json(found.as_dicts())
        return
    _print_blocks(found)
    tell_written(pictures)


def _print_blocks(found: Sharing) -> None:
    names = [
        share.name if len(share.name) <= _WIDEST else f"#{number}"
        for number, share in enumerate(found.shares, start=1)
    ]
    blocks = [found.block_sparsities(share) for share in found.shares]
    table = [[str(block), *(f"{100 * own[block]:.1f}" for own in blocks)] for block in blocks[0]]
    table.append(["all", *(f"{100 * found.whole(share):.1f}" for share in found.shares)])
    columns = ["block", *names]
    title = f"{found.model}, {found.metric}: sparsity of each decoder block, in %"
    print_table(columns, table, title=title, numbers=columns, lines=False)
    for name, share in zip(names, found.shares, strict=True):
        if name != share.name:
            say(f"{name}  {share.name}")
