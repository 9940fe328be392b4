"""One page on searches, which needs nothing but itself: text, formulas, pictures and styles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gpprune.compile import render
from gpprune.discover.plots.style import save_figure
from gpprune.discover.report import RECIPE_FILE
from gpprune.discover.watch.charts import averaged, figures, svg
from gpprune.discover.watch.commands import evolve_command, use_commands
from gpprune.discover.watch.status import minutes
from gpprune.discover.watch.story import Story, likeness, stories
from gpprune.errors import GppruneError, UsageError
from gpprune.evals import shown
from gpprune.files import expanded, whole_file
from gpprune.primitives import Formula, parse

_FOLDER = Path(__file__).parent / "templates"
_ABOUT = {
    "metric": "A pruning metric scores every weight of a layer. The lowest scores go.",
    "allocation": "An allocation says how much of each layer goes.",
    "joint": "The metric scores every weight, and the lowest scores go. The allocation says how "
    "much of each layer goes.",
}


def write_page(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Write a page on searches, and beside it each of its pictures as a PNG and an SVG.

    Args:
        runs: their directories, finished or not.
        out: the page is `out` with the suffix ``.html``; pictures are called `out-NAME`.

    Returns:
        The files, the page first.

    Raises:
        UsageError: a path is no run directory, there is none, or the runs have different losses.
        GppruneError: a run is damaged, or a file cannot be written.
    """
    if not runs:
        raise UsageError("no run to tell of: name at least one run directory")
    path = expanded(out)
    if not path.name:
        raise UsageError(f"{str(out)!r} names no file: give a path such as pages/search")
    told = stories(list(runs))
    losses = list(dict.fromkeys(story.summary.loss.name for story in told))
    if len(losses) > 1:
        raise UsageError(f"the runs were judged by {', '.join(losses)}: tell of those of one loss")
    drawn = figures(told)
    page = _text(told, {name: svg(figure, name) for name, figure in drawn.items()})
    file = path.with_name(f"{path.name.removesuffix('.html')}.html")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_file(file, page)
    except OSError as error:
        raise GppruneError(f"cannot write the page {file}: {error.strerror or error}") from error
    pictures = [
        picture
        for name, figure in drawn.items()
        for picture in save_figure(figure, file.with_name(f"{file.stem}-{name}"))
    ]
    return [file, *pictures]


def _text(told: Sequence[Story], pictures: dict[str, str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": shown, "typeset": _typeset, "minutes": minutes}
    loss = told[0].summary.loss
    return environment.get_template("page.html").render(
        stories=told,
        loss=loss,
        about=list(dict.fromkeys(_ABOUT.get(story.goal.kind, "") for story in told)),
        groups=_groups(told),
        averaged=averaged(told),
        pictures={name: Markup(text) for name, text in pictures.items()},
        row_formula=_row_formula,
        terminals=_terminals,
        command=lambda story: evolve_command(story.goal, story.settings),
        uses=lambda story: use_commands(
            story.status.run, story.goal.model, (story.status.run / RECIPE_FILE).is_file()
        ),
        closed=Story.formula,
    )


@cache
def _typeset(formula: Formula) -> Markup:
    """A formula as MathML."""
    return Markup(render(formula.canonical(None), "mathml"))


def _row_formula(story: Story, row: dict[str, Any]) -> Formula:
    return parse(str(row["formula"]), story.goal.language)


def _terminals(story: Story, formula: Formula) -> list[tuple[str, str]]:
    """What the names in a formula stand for."""
    known = story.goal.language.terminals
    return [(name, known[name].about) for name in sorted(formula.names) if name in known]


def _groups(told: Sequence[Story]) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone: what they are, how many, their mean and spread."""
    found = []
    for _, group in groupby(sorted(told, key=likeness), likeness):
        own = list(group)
        goal, run = own[0].goal, own[0].summary
        what = goal.kind, goal.model, f"{goal.sparsity:g}", goal.pattern, goal.update, run.strategy
        figures = {
            split: _spread([getattr(story.summary, split) for story in own])
            for split in ("validation", "test")
        }
        found.append({"what": what, "count": len(own), **figures})
    return found


def _spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of figures that are there, for a reader."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return shown(mean)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (len(known) - 1))
    return f"{shown(mean)} ± {shown(deviation)}"
