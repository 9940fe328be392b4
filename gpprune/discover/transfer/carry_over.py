"""Formulas found on one model, text, sparsity or pattern, judged on others."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.discover.judges import Judges, check_order_of
from gpprune.discover.texts import Texts
from gpprune.discover.transfer.candidates import (
    Carried,
    Setting,
    carried_over,
    published_for,
    settings,
)
from gpprune.discover.transfer.result import CarryOver, Cell, Line
from gpprune.discover.workbench import Workbench
from gpprune.errors import Unfit, UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN, Evaluation, compute_dtype
from gpprune.evals.tasks.margin import TASK
from gpprune.files import expanded, remove, whole_file
from gpprune.journal import Journal, as_json, file_to_come
from gpprune.progress import Progress, silent
from gpprune.prune import Recipe, configuration_digest, stored_digest, tokens_digest
from gpprune.prune.model.sources import source_of

_TEXTS = ("wikitext2",)


def carry_over(
    given: Iterable[str],
    *,
    models: Sequence[str] = ("smollm2",),
    texts: Sequence[str] = _TEXTS,
    tasks: Sequence[str] = (),
    sparsity: Sequence[float] | None = None,
    patterns: Sequence[str] | None = None,
    against: Sequence[str] | None = None,
    top: int = 1,
    on: Texts | None = None,
    split: str = "test",
    order: str = "dense",
    dtype: str = "auto",
    out: str | Path | None = None,
    progress: Progress = silent,
) -> CarryOver:
    """Judge formulas in every combination of models, texts, sparsities and patterns.

    In each they stand beside the published formulas of their kind with the same budget, under the
    same update, shots and order. A published metric has its own code's pattern or the recipe's,
    whichever serves it better in the very figure that is shown.

    Figures are kept in `OUT.figures` as they come, so that the same call goes on from there; the
    file goes when `OUT` is written.

    Args:
        given: what is carried over, see `carried_over`.
        models: what `gpprune.load_model` takes, the one first that the formulas come from.
        texts: what is judged on, likewise.
        tasks: judged on after the texts, each by the likelihood of the right answers; `on` says
            where their rows are.
        sparsity: shares of weights to prune; None: the recipes' own.
        patterns: which weights compete; None: the recipes' own.
        against: names of published formulas; None: all of their kind.
        top: how many of a run's best formulas.
        on: the text that is calibrated on, and how much of all is read; its own `text` is not.
        split: which part of the texts.
        order: of calibration, see `gpprune.discover.compare_recipes`.
        dtype: what is judged in: "auto", "float32" or "bfloat16".
        out: a file for `CarryOver.as_dict`; None: nothing is written or kept.
        progress: called as `progress(label, done, total)`.

    Raises:
        UsageError: a name or a value that is none, or `out` exists.
        GppruneError: a model or a text cannot be had, or a model cannot be pruned.
    """
    carried, on = carried_over(given, top), on or Texts()
    for each in carried:
        check_order_of(each.recipe, order, repr(each.name))
    asked = [f"{TASK}{task}" for task in tasks]
    for name in asked:
        LOSSES.find(name)
    places = settings(carried, models, [*texts, *asked], sparsity, patterns)
    _check_models(models)
    compute_dtype(dtype)
    path = None if out is None else file_to_come(out)
    journal = Journal(None if path is None else figures_beside(path))
    found: dict[Setting, _Found] = {}
    for model in dict.fromkeys(models):
        here = [place for place in places if place.model == model]
        bench = _bench(here, carried, on, split, dtype, progress)
        judge = _Judge(bench, carried, against, split, order, journal, progress)
        found |= {place: judge.all(place) for place in here}
    stated = {
        "split": split,
        "windows": on.windows,
        "window_length": on.window_length,
        "calibration_text": on.calibration_text,
        "calibration_samples": on.calibration_samples,
        "seed": on.seed,
        "order": order,
        "dtype": dtype,
    }
    result = _together(places, carried, found, stated)
    if path is not None:
        whole_file(path, as_json(result.as_dict()))
        remove(figures_beside(path))
    return result


def figures_beside(out: Path) -> Path:
    """Where figures are kept until all are there."""
    return out.parent / f"{out.name}.figures"


def figures_kept(out: str | Path | None) -> str | None:
    """What an unfinished `carry_over` has left to go on from, for a reader; None: nothing."""
    kept = None if out is None else figures_beside(expanded(out))
    if kept is None or not kept.is_file():
        return None
    return f"figures are kept in {kept}: the same command goes on"


def _check_models(models: Sequence[str]) -> None:
    """See that what can only be a directory is one, before another is worked on for an hour."""
    if not models:
        raise UsageError("there is no model to judge on: name one")
    for model in models:
        if source_of(model).name == "directory" and not expanded(model).is_dir():
            raise UsageError(f"there is no model directory {model!r}: name another")


def _bench(
    places: Sequence[Setting],
    carried: Sequence[Carried],
    on: Texts,
    split: str,
    dtype: str,
    progress: Progress,
) -> Workbench:
    """A model with its texts, and what any formula may read of it."""
    recipes = [place.of(each.recipe) for place in places for each in carried]
    beside = [chain(*published_for(recipe, ()).values()) for recipe in recipes]
    texts = [place.text for place in places if not place.text.startswith(TASK)]
    return Workbench(
        places[0].model,
        replace(on, text=texts[0]) if texts else on,
        dtype=dtype,
        reads=[*((text, split) for text in texts), (on.calibration_text, "calibration")],
        names=frozenset[str]().union(*(recipe.reads for recipe in chain(recipes, *beside))),
        progress=progress,
    )


@dataclass(frozen=True, eq=False)
class _Found:
    """What was judged in one setting."""

    dense: Evaluation
    cells: Mapping[str, Cell]
    left: Sequence[str]


class _Judge:
    """What judging on one model takes."""

    def __init__(
        self,
        bench: Workbench,
        carried: Sequence[Carried],
        against: Sequence[str] | None,
        split: str,
        order: str,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._bench, self._carried, self._against = bench, carried, against
        self._split, self._order, self._progress = split, order, progress
        self._journal, self._kept = journal, journal.read()
        self._texts = bench.digests()
        self._model = {
            "model": stored_digest(bench.loaded),
            "configuration": configuration_digest(bench.loaded),
            "calibration": tokens_digest(bench.calibration()),
            "dtype": str(bench.dtype),
            "order": order,
        }
        self._shapes = {name: layer.shape for name, layer in bench.layers.items()}

    def all(self, place: Setting) -> _Found:
        """Every formula in a setting."""
        text, loss = place.text, NEXT_TOKEN
        if text.startswith(TASK):
            text, loss = self._bench.texts.text, LOSSES.find(text)
        self._bench.loss = loss
        windows = self._bench.windows(self._split, text=text)
        judges = Judges(self._bench, [windows], self._order, self._progress)
        named = self._named(place)
        cells, left = dict[str, Cell](), []
        dense = self._figure(None, windows, lambda: [self._bench.dense(windows, self._progress)])
        for done, (name, recipes) in enumerate(named.items()):
            self._progress(f"judging on {place.model}, {place.text}", done, len(named))
            tried = [self._tried(recipe, windows, judges) for recipe in recipes]
            judged = [cell for cell in tried if isinstance(cell, Cell)]
            if judged:
                cells[name] = min(judged, key=lambda cell: _standing(cell.evaluation))
            else:
                left.append(f"{name} on {place.model}, {place.text}: {tried[0]}")
        self._progress(f"judging on {place.model}, {place.text}", len(named), len(named))
        return _Found(dense, cells, left)

    def _named(self, place: Setting) -> dict[str, list[Recipe]]:
        """By name the recipes to choose from, the carried ones first."""
        found = {each.name: [place.of(each.recipe)] for each in self._carried}
        beside: dict[str, dict[str, Recipe]] = {}
        for (recipe,) in list(found.values()):
            shapes = self._shapes.values() if self._fits(recipe) is None else ()
            for name, recipes in published_for(recipe, shapes).items():
                known = beside.setdefault(name, {})
                known.update((recipe.model_dump_json(), recipe) for recipe in recipes)
        if self._against is not None:
            if unknown := [name for name in self._against if name not in beside]:
                raise UsageError(
                    f"there is no published formula {unknown[0]!r} of the kind: choose from "
                    f"{', '.join(beside)}"
                )
            beside = {name: beside[name] for name in self._against}
        for name, known in beside.items():
            found[f"{name}, published" if name in found else name] = list(known.values())
        return found

    def _tried(self, recipe: Recipe, windows: Tensor, judges: Judges) -> Cell | str:
        """A recipe with what it comes to, or why it cannot be followed here."""
        if (why := self._fits(recipe)) is not None:
            return why
        try:
            return Cell(recipe, self._figure(recipe, windows, lambda: judges(recipe)))
        except (Unfit, UsageError) as error:
            return str(error)

    def _fits(self, recipe: Recipe) -> str | None:
        """Why a recipe's pattern does not fit the model; None: it does."""
        try:
            recipe.shape.check_model(self._shapes)
        except UsageError as error:
            return str(error)
        return None

    def _figure(
        self, recipe: Recipe | None, windows: Tensor, judge: Callable[[], list[Evaluation]]
    ) -> Evaluation:
        """What was kept, or what is judged now and kept."""
        stated = {
            **self._model,
            "text": tokens_digest(windows),
            "texts": self._texts if self._bench.loaded.stored.beside else None,
            "recipe": None if recipe is None else recipe.model_dump(),
        }
        key = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        kept = self._kept.get(key)
        if kept is not None and len(kept) == len(windows):
            return Evaluation(torch.tensor(kept, dtype=torch.float64), self._bench.loss)
        (found,) = judge()
        self._journal.add({key: found.losses.tolist()})
        return found


def _standing(evaluation: Evaluation) -> float:
    """What is better comes first; what is no number comes last."""
    return math.inf if math.isnan(evaluation.mean) else evaluation.mean


def _together(
    places: Sequence[Setting],
    carried: Sequence[Carried],
    found: Mapping[Setting, _Found],
    stated: Mapping[str, Any],
) -> CarryOver:
    names = dict.fromkeys(each.name for each in carried)
    for place in places:
        names |= dict.fromkeys(found[place].cells)
    ours = {each.name for each in carried}
    lines = [
        Line(name, name in ours, tuple(found[place].cells.get(name) for place in places))
        for name in names
    ]
    left = tuple(sentence for place in places for sentence in found[place].left)
    return CarryOver(
        tuple(places), tuple(found[place].dense for place in places), tuple(lines), left, stated
    )
