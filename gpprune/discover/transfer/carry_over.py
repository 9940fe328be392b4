"""Formulas found on one model, text, sparsity or pattern, judged on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from gpprune.discover.judges import check_order_of
from gpprune.discover.texts import Texts
from gpprune.discover.transfer.candidates import (
    Carried,
    Setting,
    carried_over,
    published_for,
    settings,
)
from gpprune.discover.transfer.judging import Found, SettingJudge
from gpprune.discover.transfer.result import CarryOver, Line
from gpprune.discover.workbench import Workbench
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, compute_dtype
from gpprune.evals.tasks.margin import TASK
from gpprune.files import expanded, remove, whole_file
from gpprune.journal import Journal, as_json, file_to_come
from gpprune.progress import Progress, silent
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
    found: dict[Setting, Found] = {}
    for model in dict.fromkeys(models):
        here = [place for place in places if place.model == model]
        bench = _bench(here, carried, on, split, dtype, progress)
        judge = SettingJudge(bench, carried, against, split, order, journal, progress)
        found |= judge.all(here)
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


def _together(
    places: Sequence[Setting],
    carried: Sequence[Carried],
    found: Mapping[Setting, Found],
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
