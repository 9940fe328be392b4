"""The look of every picture, and how one is written as a PNG and an SVG."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded, whole_file

if TYPE_CHECKING:  # matplotlib takes a second to load: only a picture pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# The palette of Okabe and Ito (2008) for all kinds of colour vision, less its yellow, which is
# too light for a line on white.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#000000"]
DASHES: list[Any] = ["-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5))]
MARKERS = "osD^vPX<>p*h"
QUIET = "#777777"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.handlelength": 3.4,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gpprune",  # the same ids each time
}
_WIDTH = 9.0  # inches
_DPI = 200
LINE = 0.19  # inches that a line of a legend takes
_ACROSS = 30  # characters that one holds


def look(place: int) -> dict[str, Any]:
    """The colour and the dashes of the line at a place."""
    dashes = DASHES[place // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[place % len(COLOURS)], "linestyle": dashes}


def legend_lines(names: Iterable[str]) -> int:
    """How many lines a legend of these names has."""
    return sum(max(1, len(textwrap.wrap(name, _ACROSS))) for name in names)


def legend(axes: Axes, lines: Sequence[Line2D]) -> None:
    """A legend outside the axes at the right, in the order of the lines."""
    names = [textwrap.fill(str(line.get_label()), _ACROSS) for line in lines]
    axes.legend(lines, names, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


@contextmanager
def styled_figure(title: str, height: float) -> Iterator[Figure]:
    """A figure of one look, whatever the user's own settings of matplotlib are."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.suptitle(textwrap.fill(title, 90), x=0.01, ha="left", fontsize=11)
        yield figure


def check_picture(path: Path) -> None:
    """See that a picture can be written; worth asking before the long work.

    Raises:
        UsageError: the path names no file, or one that may not be written.
    """
    if not path.name:
        raise UsageError(f"{str(path)!r} names no file: give a path such as plots/allocations")
    parent = expanded(path).absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"the picture {str(path)!r} cannot be written: {str(parent)!r} is not a directory "
            "that you may write to"
        )


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as `path` with the suffixes `.png` and `.svg`, each whole, and return both.

    Raises:
        UsageError: the path names no file.
        GppruneError: it cannot be written.
    """
    from matplotlib import style

    if not path.name:
        raise UsageError(f"{str(path)!r} names no file: give a path such as plots/allocations")
    path = expanded(path)
    drawn = {suffix: io.BytesIO() for suffix in (".png", ".svg")}
    with style.context(["default", STYLE]):
        for suffix, buffer in drawn.items():
            metadata = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=metadata)
    files = {path.with_suffix(suffix): buffer.getvalue() for suffix, buffer in drawn.items()}
    for file, content in files.items():
        _write(file, content)
    return list(files)


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file(file, content)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise GppruneError(f"cannot write the picture {str(file)!r}: {why}") from error
