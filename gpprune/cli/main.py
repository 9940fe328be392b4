"""The command line's entry: the application, exit codes, and errors as one sentence."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Annotated, TextIO

import typer

from gpprune import __version__
from gpprune.cli import allocating, evaluate, evolve, formulas, inspecting, pruning, runs, scoring
from gpprune.cli.console import err, escape, say, tell
from gpprune.cli.options import on_device
from gpprune.errors import DampingWarning, GppruneError
from gpprune.memory import out_of_memory

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Discover how to prune a large language model: evolve a pruning metric on your model, "
    "read it as a closed form, prune with it.",
)
evolving = typer.Typer(no_args_is_help=True, help="Search for formulas on your model.")
scores = typer.Typer(no_args_is_help=True, help="Judge formulas side by side on your model.")
evolving.command("metric")(on_device(evolve.evolve_metric))
evolving.command("allocation")(on_device(evolve.evolve_allocation))
evolving.command("joint")(on_device(evolve.evolve_joint))
evolving.command("structured")(on_device(evolve.evolve_structured))
scores.command("metrics")(on_device(scoring.score_metrics))
scores.command("allocations")(on_device(scoring.score_allocations))
app.command("resume")(on_device(evolve.resume))
app.command("report")(runs.report)
app.command("status")(runs.status)
app.command("simplify")(formulas.simplify)
app.command("allocate")(on_device(allocating.allocate))
app.command("prune")(on_device(pruning.prune))
app.command("eval")(on_device(evaluate.evaluate))
app.command("transfer")(on_device(scoring.transfer))
app.command("inspect")(on_device(inspecting.inspect))
app.command("shrink")(on_device(pruning.shrink))
app.command("recover")(on_device(pruning.recover))
app.command("primitives")(formulas.primitives)
app.add_typer(evolving, name="evolve")
app.add_typer(scores, name="score")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"gpprune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass  # the group's help is the application's


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say that a curvature was damped more than asked for in a line, once."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, DampingWarning):
            tell(str(message))
        else:
            before(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.simplefilter("once", DampingWarning)
        before, warnings.showwarning = warnings.showwarning, show
        yield


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done, 1 failed, 2 wrong usage, 130 interrupted. SIGTERM is the console script's concern.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may not know the signs of a formula
            stream.reconfigure(errors="replace")
    try:
        with _plain_warnings():
            app(arguments)
    except GppruneError as error:
        _say(str(error))
        return error.exit_code
    except SystemExit as ended:  # typer's way to end: usage errors and Ctrl-C included
        code = ended.code if isinstance(ended.code, int) else 0
        if code == INTERRUPTED:
            _say("interrupted")
        return code
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _say(
            "out of memory: free some, or take a smaller model, or fewer or shorter windows; of a "
            "GPU, --device cpu computes without it"
        )
        return 1
    except OSError as error:
        # nobody reads our output, or its disk is full; Python would complain again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            _say(f"cannot read or write: {error}")
        return 1
    return 0


def _say(message: str) -> None:
    err.print(f"[bold red]gpprune:[/] {escape(message)}", highlight=False, soft_wrap=True)
