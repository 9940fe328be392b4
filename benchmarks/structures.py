"""Whole units taken out of SmolLM2-135M: perplexity against the speed that is measured.

    python -m benchmarks.structures RECIPE.json [RECIPE.json ...] [--sparsity 0.1 0.2 0.3]
        [--update none refit] [--shots 8] [--recover 1] [--rows ROWS.jsonl] [--picture PICTURE]

Recipes have a pattern of whole units, such as mlp. The model is pruned by each on the tokens of
`benchmarks.protocol` and judged on them, what is dead is taken out as by ``gpprune shrink``, and
what is left reads text beside the dense model, in turns. With ``--rows`` every row is kept in a
file of JSON lines, and what is there is not done again: recipes of other shots may add to it. The
picture has all rows of it.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from benchmarks.flags import parser_of
from benchmarks.protocol import SHOWN, Judge, add_protocol, stored_tokens, variants
from benchmarks.shown import print_table, progress
from gpprune.discover.plots.style import look, save_figure, styled_figure
from gpprune.evals.speed import tokens_a_second
from gpprune.prune import Recipe, shrink

_TURNS = 9


@dataclass(frozen=True)
class Row:
    """A model without some units.

    Attributes:
        recipe: what pruned it, as its file is called.
        how: the update, and shots and training where there are any.
        sparsity: the share of the linear layers' weights that were to go.
        perplexity: on the evaluation tokens.
        c4: on those of C4; None: there are none.
        parameters: what is left of all of the model's, a share.
        speed: tokens that it reads a second, over those of the dense model: the median of turns.
        tokens_a_second: it reads.
        seconds: that pruning and judging took.
    """

    recipe: str
    how: str
    sparsity: float
    perplexity: float
    c4: float | None
    parameters: float
    speed: float
    tokens_a_second: float
    seconds: float

    @property
    def name(self) -> str:
        """The recipe and how it prunes."""
        return ", ".join(part for part in (self.recipe, self.how) if part)

    def cells(self) -> list[str]:
        """What a table shows."""
        return [
            self.name,
            f"{self.sparsity:g}",
            f"{self.perplexity:.2f}",
            "" if self.c4 is None else f"{self.c4:.2f}",
            f"{self.parameters:.3f}",
            f"{self.speed:.2f}",
        ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("structures", __doc__)
    add_protocol(parser, order="dense")
    parser.add_argument("--rows", type=Path, help="a file that rows are kept in")
    parser.add_argument("--picture", type=Path, help="where a .png and a .svg are written")
    given = parser.parse_args(arguments)
    tokens = stored_tokens(given.tokens)
    calibration = tokens["calibration"][: given.samples]
    texts = [tokens[name][: given.windows] for name in SHOWN if name in tokens]
    others = {"shots": given.shots, "recover": given.recover}
    rows = _kept(given.rows)
    jobs = [
        (path.stem, recipe)
        for path in given.recipes
        for recipe in variants(Recipe.read(path), given.sparsity, given.update, **others)
        if not any((path.stem, _how(recipe), recipe.sparsity) == _place(row) for row in rows)
    ]
    with progress() as report:
        judge = Judge(given.model, calibration, texts, given.order, report)
        dense = judge.pruned
        judge.prepare(recipe for _, recipe in jobs)
        if not rows:
            figures = judge.judged(dense)
            rows.append(_row("dense", "", 0.0, figures, dense, dense, 0.0))
            _keep(given.rows, rows[-1])
        for name, recipe in jobs:
            start = time.perf_counter()
            figures = judge(recipe)
            seconds = time.perf_counter() - start
            small = copy.deepcopy(judge.pruned)
            shrink(small)
            rows.append(_row(name, _how(recipe), recipe.sparsity, figures, small, dense, seconds))
            _keep(given.rows, rows[-1])
            print(*rows[-1].cells(), flush=True)  # a later one may fail
    columns = ["recipe", "sparsity", "perplexity", "C4", "size", "speed"]
    print_table(columns, [row.cells() for row in rows])
    if given.picture:
        _draw(rows, given.picture)


def _how(recipe: Recipe) -> str:
    shots = [f"{recipe.shots} shots"] if recipe.shots > 1 else []
    trained = [f"trained for {recipe.recover}"] if recipe.recover else []
    return ", ".join([recipe.update, *shots, *trained])


def _place(row: Row) -> tuple[str, str, float]:
    return row.recipe, row.how, row.sparsity


def _row(
    name: str,
    how: str,
    sparsity: float,
    figures: Sequence[float],
    small: nn.Module,
    dense: nn.Module,
    seconds: float,
) -> Row:
    """A row, with both models timed in turns, since machines are noisy."""
    sizes = [sum(p.numel() for p in model.parameters()) for model in (small, dense)]
    turns = [
        (tokens_a_second(small, passes=2), tokens_a_second(dense, passes=2)) for _ in range(_TURNS)
    ]
    fast = max(own for own, _ in turns)
    ratio = statistics.median(own / whole for own, whole in turns)
    figure, c4 = figures[0], figures[1] if len(figures) > 1 else None
    share, speed = sizes[0] / sizes[1], 1.0 if small is dense else ratio
    return Row(name, how, sparsity, figure, c4, share, speed, fast, seconds)


def _kept(path: Path | None) -> list[Row]:
    if path is None or not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Row(**json.loads(line)) for line in lines]


def _keep(path: Path | None, row: Row) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def _draw(rows: Sequence[Row], path: Path) -> None:
    """Perplexity against speed, a line for each way to prune."""
    dense, lines = rows[0], dict.fromkeys(row.name for row in rows[1:])
    with styled_figure("Perplexity against measured speed, whole units taken out", 4.5) as figure:
        axes = figure.subplots()
        for place, name in enumerate(lines):
            own = [row for row in rows[1:] if row.name == name]
            own = [dense, *sorted(own, key=lambda row: row.sparsity)]
            points = [row.speed for row in own], [row.perplexity for row in own]
            axes.plot(*points, marker="o", label=name, **look(place))
        axes.set(xlabel="tokens read a second, over the dense model's", ylabel="perplexity")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.legend(loc="upper left")
        save_figure(figure, path)


if __name__ == "__main__":
    main()
