"""Flags that several benchmarks have, each declared once."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from dataclasses import replace

from gpprune.discover import Texts
from gpprune.errors import UsageError
from gpprune.prune import UPDATES

UPDATE_NAMES = f"{', '.join(UPDATES)}, or 'refit(3)': of three steps"


def parser_of(name: str, documentation: str | None) -> ArgumentParser:
    """A parser for `python -m benchmarks.NAME`.

    Args:
        name: of the benchmark; empty for all of them.
        documentation: its module's; the first line says what it measures.
    """
    module = f"benchmarks.{name}" if name else "benchmarks"
    first = (documentation or "").splitlines()[0]
    return ArgumentParser(prog=f"python -m {module}", description=first)


def add_model(parser: ArgumentParser) -> None:
    """Which model is measured on."""
    parser.add_argument("--model", default="smollm2", help="smollm2, a local directory, a hub id")


def add_length(parser: ArgumentParser, default: int = 512) -> None:
    """How long windows and calibration sequences are."""
    parser.add_argument("--length", type=positive, default=default, help="tokens a window")


def add_ours(parser: ArgumentParser) -> None:
    """What searches of ours judge and calibrate on, see `of_size`."""
    parser.add_argument(
        "--ours",
        type=positive,
        nargs=3,
        metavar=("WINDOWS", "LENGTH", "SAMPLES"),
        help="of our searches, in place of the command line's",
    )


def of_size(texts: Texts, amounts: Sequence[int] | None) -> Texts:
    """Texts in other amounts: windows, tokens of each, calibration sequences; None: as they are."""
    if amounts is None:
        return texts
    count, length, samples = amounts
    return replace(texts, windows=count, window_length=length, calibration_samples=samples)


def add_layers(parser: ArgumentParser) -> None:
    """How many of the model's layers are scored."""
    parser.add_argument("--layers", type=positive, help="the first so many; by default all")


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def update_name(text: str) -> str:
    """A name of `UPDATES`, perhaps with a number of steps: `refit(3)`.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        return UPDATES.find(text).name
    except UsageError as error:
        raise ArgumentTypeError(str(error)) from None
