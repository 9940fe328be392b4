"""What formulas did in several settings: ranks, gains, and how far the order of one holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scipy.stats import kendalltau

from gpprune.discover.texts import short_names
from gpprune.discover.transfer.candidates import Setting
from gpprune.evals import Evaluation, ShownTable, shown
from gpprune.prune import Recipe

_ABREAST = 4  # settings in one table: as many as a terminal has room for


@dataclass(frozen=True, eq=False)
class Cell:
    """A formula in a setting: the recipe that served it best there, and how good the model is."""

    recipe: Recipe
    evaluation: Evaluation


@dataclass(frozen=True, eq=False)
class Line:
    """A formula in all settings.

    Attributes:
        name: what it is called.
        carried: whether it was carried over; else it is published.
        cells: one a setting; None where it could not be followed.
    """

    name: str
    carried: bool
    cells: tuple[Cell | None, ...]

    def figure(self, at: int) -> float | None:
        """What a reader is shown of a setting; None: it could not be followed, or is no number."""
        cell = self.cells[at]
        figure = math.nan if cell is None else cell.evaluation.figure
        return None if math.isnan(figure) else figure


@dataclass(frozen=True, eq=False)
class CarryOver:
    """Formulas in several settings, beside the published ones of the same budget.

    Attributes:
        settings: the first is where the order of the others is compared with.
        dense: the dense model in each.
        lines: the carried ones first.
        left: why a formula has no figure in a setting, a sentence each.
        stated: what the figures rest on, beside: split, windows, calibration, order, dtype.
    """

    settings: tuple[Setting, ...]
    dense: tuple[Evaluation, ...]
    lines: tuple[Line, ...]
    left: tuple[str, ...]
    stated: Mapping[str, Any] = field(default_factory=dict)

    @property
    def carried(self) -> list[Line]:
        """What was carried over."""
        return [line for line in self.lines if line.carried]

    def best_published(self, at: int) -> Line | None:
        """The best published formula of a setting, chosen by the very text that is judged."""
        figures = ((line.figure(at), line) for line in self.lines if not line.carried)
        found = [(figure, line) for figure, line in figures if figure is not None]
        return min(found, key=lambda pair: pair[0], default=(0.0, None))[1]

    def gain(self, line: Line, at: int) -> float | None:
        """How far below the best published figure a formula's is, as a share of it."""
        best = self.best_published(at)
        own, other = line.figure(at), None if best is None else best.figure(at)
        return None if own is None or not other or math.isinf(other) else 1 - own / other

    def mean_gain(self, line: Line) -> float | None:
        """The geometric mean over the settings but the first; None of none."""
        gains = [self.gain(line, at) for at in range(1, len(self.settings))]
        ratios = [math.log1p(-gain) for gain in gains if gain is not None and gain < 1]
        return 1 - math.exp(math.fsum(ratios) / len(ratios)) if ratios else None

    def tau(self, at: int) -> float | None:
        """Kendall's rank correlation (tau-b) of the order in a setting and in the first."""
        pairs = [(line.figure(0), line.figure(at)) for line in self.lines]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        if len(known) < 2:
            return None
        found = float(kendalltau(*zip(*known, strict=True)).statistic)
        return None if math.isnan(found) else found  # all are alike in one of the two

    def rank(self, line: Line, at: int) -> int | None:
        """The place of a formula among all in a setting, from 1."""
        own = line.figure(at)
        if own is None:
            return None
        figures = [other.figure(at) for other in self.lines]
        return 1 + sum(figure is not None and figure < own for figure in figures)

    @cached_property
    def names(self) -> list[str]:
        """The settings by what tells them apart."""
        parts = [
            short_names([s.model for s in self.settings]),
            short_names([s.text for s in self.settings]),
            [f"{s.sparsity:g}" for s in self.settings],
            [s.pattern or "" for s in self.settings],
        ]
        told = [part for part in parts if len(set(part)) > 1] or parts[:1]
        return [" ".join(part[at] for part in told) for at in range(len(self.settings))]

    @property
    def common(self) -> str:
        """What is the same of all settings."""
        first = self.settings[0]
        parts: dict[str, set[Any]] = {
            short_names([first.model])[0]: {s.model for s in self.settings},
            short_names([first.text])[0]: {s.text for s in self.settings},
            f"{first.sparsity:g} pruned": {s.sparsity for s in self.settings},
            first.pattern or "": {s.pattern for s in self.settings},
        }
        return ", ".join(name for name, own in parts.items() if name and len(own) == 1)

    def tables(self) -> Iterator[ShownTable]:
        """Tables for a reader, of a few settings each: figures, ranks, and what they come to."""
        figures = dict.fromkeys(dense.loss.figure for dense in self.dense)
        title = f"{' or '.join(figures)}, and rank"
        title += f"; {self.common}" if self.common else ""
        for start in range(0, len(self.settings), _ABREAST):
            places = range(len(self.settings))[start : start + _ABREAST]
            names = [self.names[at] for at in places]
            rows = [["dense", *(shown(self.dense[at].figure) for at in places)]]
            for line in self.lines:
                name = f"{line.name} (carried over)" if line.carried else line.name
                rows.append([name, *(self._cell(line, at) for at in places)])
            best = [self.best_published(at) for at in places]
            rows.append(["best published", *("" if one is None else one.name for one in best)])
            for line in self.carried:
                gains = [_percent(self.gain(line, at)) for at in places]
                rows.append([f"gain of {line.name}", *gains])
            taus = ["" if at == 0 else shown(self.tau(at)) for at in places]
            rows.append(["Kendall's tau to the first", *taus])
            yield title, ["formula", *names], rows, names
        if len(self.settings) > 1:
            means = [[line.name, _percent(self.mean_gain(line))] for line in self.carried]
            title = "mean gain over the best published formula, but for the first setting"
            yield title, ["formula", "gain"], means, ["gain"]

    def _cell(self, line: Line, at: int) -> str:
        rank = self.rank(line, at)
        return "-" if rank is None else f"{shown(line.figure(at))} ({rank})"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        places = range(len(self.settings))
        return {
            "settings": [
                {
                    "model": s.model,
                    "text": s.text,
                    "sparsity": s.sparsity,
                    "pattern": s.pattern,
                    "dense": self.dense[at].as_dict(),
                    "kendall_tau_to_first": self.tau(at),
                }
                for at, s in enumerate(self.settings)
            ],
            "formulas": [
                {
                    "name": line.name,
                    "carried": line.carried,
                    "mean_gain": self.mean_gain(line),
                    "in": [self._plain(line, at) for at in places],
                }
                for line in self.lines
            ],
            "left": list(self.left),
            "stated": dict(self.stated),
        }

    def _plain(self, line: Line, at: int) -> dict[str, Any] | None:
        cell = line.cells[at]
        if cell is None:
            return None
        return {
            **cell.evaluation.as_dict(),
            "losses": cell.evaluation.losses.tolist(),
            "rank": self.rank(line, at),
            "gain": self.gain(line, at),
            "recipe": cell.recipe.model_dump(),
        }


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.1f} %"
