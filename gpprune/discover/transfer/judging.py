"""Formulas in the settings of one model, each pruned by once for all texts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpprune.discover.judges import Judges
from gpprune.discover.transfer.candidates import Carried, Setting, published_for
from gpprune.discover.transfer.result import Cell
from gpprune.discover.workbench import Workbench
from gpprune.errors import Unfit, UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN, Evaluation
from gpprune.evals.tasks.margin import TASK
from gpprune.journal import Journal
from gpprune.progress import Progress
from gpprune.prune import Recipe, configuration_digest, stored_digest, tokens_digest


@dataclass(frozen=True, eq=False)
class Found:
    """What was judged in one setting.

    Attributes:
        dense: the dense model.
        cells: by a formula's name.
        left: why others have none, a sentence each.
    """

    dense: Evaluation
    cells: Mapping[str, Cell]
    left: Sequence[str]


class SettingJudge:
    """Judges formulas on one model.

    Args:
        bench: holds it and its texts.
        carried: what is carried over.
        against: names of published formulas; None: all of their kind.
        split: which part of the texts.
        order: of calibration.
        journal: keeps figures.
        progress: called as `progress(label, done, total)`.
    """

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
        self._identity = {
            "model": stored_digest(bench.loaded),
            "configuration": configuration_digest(bench.loaded),
            "calibration": tokens_digest(bench.calibration()),
            "dtype": str(bench.dtype),
            "order": order,
            # tokens do not tell images apart
            "texts": bench.digests() if bench.loaded.stored.beside else None,
        }
        self._shapes = {name: layer.shape for name, layer in bench.layers.items()}

    def all(self, places: Sequence[Setting]) -> dict[Setting, Found]:
        """Every formula in settings of the model.

        Raises:
            UsageError: there is no published formula of a name, or a text or task cannot be had;
                nothing has been judged then.
        """
        named = {place: self._named(place) for place in places}
        windows = {place.text: self._windows(place.text) for place in places}
        found: dict[Setting, Found] = {}
        for loss in dict.fromkeys(map(_loss_of, windows)):
            own = {text: rows for text, rows in windows.items() if _loss_of(text) == loss}
            self._bench.loss = LOSSES.find(loss)
            judges = Judges(self._bench, list(own.values()), self._order, self._progress)
            here = [place for place in places if place.text in own]
            for budget in dict.fromkeys((place.sparsity, place.pattern) for place in here):
                alike = [place for place in here if (place.sparsity, place.pattern) == budget]
                found |= self._of_budget(alike, named[alike[0]], own, judges)
        return found

    def _windows(self, text: str) -> Tensor:
        self._bench.loss = LOSSES.find(_loss_of(text))
        own = self._bench.texts.text if text.startswith(TASK) else text
        return self._bench.windows(self._split, text=own)

    def _of_budget(
        self,
        places: Sequence[Setting],
        named: Mapping[str, Sequence[Recipe]],
        windows: Mapping[str, Tensor],
        judges: Judges,
    ) -> dict[Setting, Found]:
        """Settings that differ in their texts alone, which a recipe is pruned by once for.

        Args:
            places: a text each, in the order of `windows`.
            named: by name the recipes to choose from.
            windows: by text.
            judges: of all these texts.
        """
        bench, report = self._bench, self._progress
        label = f"judging on {places[0].model}"
        dense = self._figures(
            None, windows, lambda: [bench.dense(own, report) for own in windows.values()]
        )
        cells: list[dict[str, Cell]] = [{} for _ in places]
        left: list[list[str]] = [[] for _ in places]
        for done, (name, recipes) in enumerate(named.items()):
            report(label, done, len(named))
            tried = [(recipe, self._tried(recipe, windows, judges)) for recipe in recipes]
            for at, place in enumerate(places):
                judged = [Cell(one, own[at]) for one, own in tried if not isinstance(own, str)]
                if judged:
                    cells[at][name] = min(judged, key=lambda cell: _standing(cell.evaluation))
                else:
                    left[at].append(f"{name} on {place.model}, {place.text}: {tried[0][1]}")
        report(label, len(named), len(named))
        return {place: Found(dense[at], cells[at], left[at]) for at, place in enumerate(places)}

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

    def _tried(
        self, recipe: Recipe, windows: Mapping[str, Tensor], judges: Judges
    ) -> list[Evaluation] | str:
        """What a recipe comes to on each text, or why it cannot be followed here."""
        if (why := self._fits(recipe)) is not None:
            return why
        try:
            return self._figures(recipe, windows, lambda: judges(recipe))
        except (Unfit, UsageError) as error:
            return str(error)

    def _fits(self, recipe: Recipe) -> str | None:
        """Why a recipe's pattern does not fit the model; None: it does."""
        try:
            recipe.shape.check_model(self._shapes)
        except UsageError as error:
            return str(error)
        return None

    def _figures(
        self,
        recipe: Recipe | None,
        windows: Mapping[str, Tensor],
        judge: Callable[[], list[Evaluation]],
    ) -> list[Evaluation]:
        """What was kept of each text, or what is judged now and kept."""
        keys = [self._key(recipe, own) for own in windows.values()]
        if not self._kept.keys() >= set(keys):
            losses = [found.losses.tolist() for found in judge()]
            new = dict(zip(keys, losses, strict=True))
            self._journal.add(new)
            self._kept |= new
        tensors = (torch.tensor(self._kept[key], dtype=torch.float64) for key in keys)
        return [Evaluation(losses, self._bench.loss) for losses in tensors]

    def _key(self, recipe: Recipe | None, windows: Tensor) -> str:
        own: dict[str, Any] = {"recipe": None if recipe is None else recipe.model_dump()}
        stated = {**self._identity, "text": tokens_digest(windows), **own}
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _loss_of(text: str) -> str:
    """The name of the loss that a setting's text is judged by."""
    return text if text.startswith(TASK) else NEXT_TOKEN.name


def _standing(evaluation: Evaluation) -> float:
    """What is better comes first; what is no number comes last."""
    return math.inf if math.isnan(evaluation.mean) else evaluation.mean
