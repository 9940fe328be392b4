"""Recipes side by side on one model: any metrics, or any allocations under one metric."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpprune.compile import render
from gpprune.discover.contenders import Contender, allocation_contenders, metric_contenders
from gpprune.discover.judges import Judges, check_order_of
from gpprune.discover.texts import Texts
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import NEXT_TOKEN, Evaluation, ShownTable, shown
from gpprune.primitives import Formula
from gpprune.progress import Progress, silent
from gpprune.prune import Coverage, Loaded, Recipe


@dataclass(frozen=True)
class Row:
    """A contender, or the dense model (`recipe` is None), judged."""

    name: str
    recipe: Recipe | None
    evaluation: Evaluation
    seconds: float

    @property
    def formula(self) -> Formula | None:
        """What tells the contenders apart: the allocation where there is one, else the metric."""
        if self.recipe is None:
            return None
        return self.recipe.formula if self.recipe.allocation == "uniform" else self.recipe.allocator

    def cells(self, with_mean: bool) -> list[str]:
        """What a reader is shown: name, pattern, sparsity, figure, perhaps mean, closed form."""
        pattern = "" if self.recipe is None else self.recipe.pattern
        sparsity = 0.0 if self.recipe is None else self.recipe.sparsity
        judged = self.evaluation
        means = [f"{judged.mean:.4f}"] if with_mean else []
        form = "" if self.formula is None else line(self.formula)
        return [self.name, pattern, f"{sparsity:g}", shown(judged.figure), *means, form]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        formula, recipe = self.formula, self.recipe
        return {
            "name": self.name,
            "formula": formula.text if formula is not None else None,
            "key": formula.key if formula is not None else None,
            "closed_form": line(formula) if formula is not None else None,
            "metric": recipe.metric if recipe is not None else None,
            "unit": recipe.unit if recipe is not None else None,
            "sparsity": recipe.sparsity if recipe is not None else 0.0,
            "pattern": recipe.pattern if recipe is not None else None,
            "update": recipe.update if recipe is not None else None,
            "permute": recipe.permute if recipe is not None else None,
            **self.evaluation.as_dict(),
            "seconds": round(self.seconds, 2),
        }


def line(formula: Formula) -> str:
    """A formula's closed form on one line."""
    return render(formula.canonical(None), "line")


@dataclass(frozen=True)
class Comparison:
    """Recipes judged on one model and text; the first row is the dense model."""

    model: str
    coverage: Coverage
    texts: Texts
    split: str
    order: str
    rows: tuple[Row, ...]

    @property
    def dense(self) -> Row:
        """The dense model."""
        return self.rows[0]

    @property
    def judged_on(self) -> str:
        """The text, and how much of it; or the tasks."""
        texts, loss = self.texts, self.dense.evaluation.loss
        if loss.cases is not None:
            return f"{loss.name} {self.split}"
        return f"{texts.text} {self.split}, {texts.windows} windows of {texts.window_length}"

    def of_metrics(self) -> ShownTable:
        """A table for a reader: a row a recipe, with its closed form."""
        loss = self.dense.evaluation.loss
        means = [loss.mean] if loss.mean != loss.figure else []
        columns = ["metric", "pattern", "sparsity", loss.figure, *means, "closed form"]
        title = f"{self.model}, {self.judged_on}, {self.order} calibration"
        rows = [row.cells(bool(means)) for row in self.rows]
        return title, columns, rows, ["sparsity", loss.figure, *means]

    def of_allocations(self, metric: str) -> ShownTable:
        """A table for a reader: a row an allocation under a metric, a column a sparsity."""
        dense, rows = self.dense.evaluation, dict[str, list[Row]]()
        for row in self.rows[1:]:
            rows.setdefault(row.name, []).append(row)
        levels = [f"{row.recipe.sparsity:g}" for row in next(iter(rows.values())) if row.recipe]
        table = [
            [name, own[0].recipe.unit if own[0].recipe else ""]
            + [shown(row.evaluation.figure) for row in own]
            for name, own in rows.items()
        ]
        title = (
            f"{self.model} pruned by {metric}, {self.judged_on}, {self.order} calibration: "
            f"{dense.loss.figure} (dense {shown(dense.figure)})"
        )
        return title, ["allocation", "unit", *levels], table, levels

    def row(self, name: str, sparsity: float) -> Row:
        """A contender at one sparsity.

        Raises:
            UsageError: it is not in the comparison.
        """
        for row in self.rows[1:]:
            if row.name == name and row.recipe is not None and row.recipe.sparsity == sparsity:
                return row
        raise UsageError(f"{name!r} was not compared at {sparsity:g}: name one of its rows")


def compare(
    metrics: Iterable[str] | None = None,
    *,
    allocations: Iterable[str] | str | None = None,
    sparsity: float | Sequence[float] | None = None,
    pattern: str | None = None,
    unit: str | None = None,
    update: str = "none",
    damp_inputs: float | None = None,
    damp_outputs: float | None = None,
    permute: str | None = None,
    **how: Any,
) -> Comparison:
    """Judge metrics side by side, or allocations under one metric.

    Args:
        metrics: published names or formula text, by default all published ones; with
            `allocations` the one metric that they share out, by default Wanda.
        allocations: published names, formula text, run directories or `label=` any of these; an
            empty list for all that are published.
        sparsity: one or more shares of weights to prune; by default 0.5, of allocations 0.7, or
            what the pattern implies.
        pattern: which weights compete; by default each metric's own.
        unit: what gets a sparsity of its own, "layer" or "block"; by default each allocation's.
        update: what happens to the weights that stay.
        damp_inputs: of the curvature that it inverts, see `gpprune.Recipe`.
        damp_outputs: the same.
        permute: what channels are permuted by before metrics prune to N:M, see `gpprune.Recipe`.
        **how: on what it is judged: the arguments of `compare_recipes`.

    Raises:
        UsageError: a name, a share or a pattern that is none.
    """
    own = {"update": update, "damp_inputs": damp_inputs, "damp_outputs": damp_outputs}
    if allocations is None:
        contenders = metric_contenders(metrics, sparsity, pattern, permute=permute, **own)
    else:
        given = [metrics] if isinstance(metrics, str) else list(metrics or ["wanda"])
        if len(given) != 1:
            raise UsageError(f"allocations are compared under one metric, not {len(given)}")
        chosen = ([allocations] if isinstance(allocations, str) else list(allocations)) or None
        contenders = allocation_contenders(chosen, given[0], sparsity, pattern, unit, **own)
    return compare_recipes(contenders, **how)


def compare_recipes(
    contenders: Sequence[Contender],
    *,
    model: str | Loaded = "smollm2",
    texts: Texts | None = None,
    split: str = "test",
    order: str = "dense",
    dtype: str = "auto",
    loss: str = NEXT_TOKEN.name,
    progress: Progress = silent,
) -> Comparison:
    """Judge recipes side by side, beside the dense model.

    Args:
        contenders: recipes with their names.
        model: what `gpprune.load_model` takes, or a loaded model in float32.
        texts: what is judged and calibrated on.
        split: which part of the text is judged on: "calibration", "validation" or "test".
        order: "dense": calibrated once on the dense model, for all recipes that take one shot on
            the given text without training; "sequential": a copy of the model for each recipe,
            calibrated block by block on the pruned blocks before, as Wanda's code; or another of
            `gpprune.prune.ORDERS`.
        dtype: what is judged in: "auto", "float32" or "bfloat16".
        loss: what is measured, a name of `gpprune.evals.LOSSES`.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: a setting that is none, or a pattern that does not fit a layer.
        GppruneError: the model or a text cannot be had, or a recipe cannot be pruned by.
    """
    contenders = list(dict.fromkeys(contenders))
    for contender in contenders:
        check_order_of(contender.recipe, order, repr(contender.name))
    _check_names(contenders)
    texts = texts or Texts()
    bench = Workbench(
        model,
        texts,
        dtype=dtype,
        loss=loss,
        reads=[(texts.text, split), (texts.calibration_text, "calibration")],
        names=frozenset[str]().union(*(contender.recipe.reads for contender in contenders)),
        progress=progress,
    )
    shapes = {name: layer.shape for name, layer in bench.layers.items()}
    for contender in contenders:
        contender.recipe.shape.check_model(shapes)
    tokens = bench.windows(split)
    rows = [_timed("dense", None, lambda: [bench.dense(tokens, progress)])]
    judges = Judges(bench, [tokens], order, progress)
    for contender in contenders:
        recipe = contender.recipe
        label = f"scoring at {recipe.sparsity:g}"
        alike = [c for c in contenders if c.recipe.sparsity == recipe.sparsity]
        progress(label, alike.index(contender), len(alike))
        rows.append(_timed(contender.name, recipe, partial(judges, recipe)))
        if contender is alike[-1]:
            progress(label, len(alike), len(alike))
    name = model.name if isinstance(model, Loaded) else model
    return Comparison(name, bench.coverage, texts, split, order, tuple(rows))


def _check_names(contenders: Sequence[Contender]) -> None:
    """See that a name and a sparsity mean one recipe."""
    places = Counter((contender.name, contender.recipe.sparsity) for contender in contenders)
    for (name, sparsity), count in places.items():
        if count > 1:
            raise UsageError(
                f"{count} different recipes are called {name!r} at {sparsity:g}: label them apart"
            )


def _timed(name: str, recipe: Recipe | None, judge: Callable[[], Sequence[Evaluation]]) -> Row:
    start = time.perf_counter()
    (evaluation,) = judge()
    return Row(name, recipe, evaluation, time.perf_counter() - start)
