"""`gpprune report` and `status`: what searches have found, and how far one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gpprune.cli import options
from gpprune.cli.console import print_json, print_shown, say, tell_written
from gpprune.discover import summarise
from gpprune.discover.plots import check_picture, save_figure, summary_figure
from gpprune.discover.report import screening_line
from gpprune.discover.runs import summary_table
from gpprune.discover.watch import run_status, write_page


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Draw the best so far against the candidates judged: PATH.png and PATH.svg.",
            metavar="PATH",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Tell all on a page, PATH.html.", metavar="PATH")
    ] = None,
    json: options.Json = False,
) -> None:
    """Compare searches: candidates judged, the best evolved formula and its figures."""
    for path in filter(None, (plot, html)):
        check_picture(path)
    found = summarise(runs)
    pictures = [] if plot is None else save_figure(summary_figure(found), plot)
    pictures += [] if html is None else write_page(runs, html)
    if json:
        print_json([summary.as_dict() for summary in found])
        return
    print_shown(summary_table(found))
    for summary in found:  # a column beside the numbers would be too narrow for a formula
        if summary.closed_form is not None:
            say(f"{summary.name}  {summary.closed_form}")
        if summary.screening is not None:
            say(f"{summary.name}  {screening_line(summary.screening)}")
        if summary.race_line is not None:
            say(f"{summary.name}  {summary.race_line}")
    tell_written(pictures)


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    json: options.Json = False,
) -> None:
    """Say how far a search is, from another terminal too while it runs."""
    found = run_status(run)
    if json:
        print_json(found.as_dict())
    else:
        say("\n".join(found.sentences))
