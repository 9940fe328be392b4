"""What is carried over, where to, and what is published for the same budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gpprune.discover.contenders import (
    best_evolved,
    check_no_path,
    metric_contenders,
    named_recipe,
)
from gpprune.discover.rivals import (
    allocation_rivals,
    as_strict,
    joint_seeds,
    metric_rival,
    metric_rivals,
)
from gpprune.discover.stored import restored
from gpprune.errors import UsageError
from gpprune.files import expanded
from gpprune.gp import RunDirectory
from gpprune.primitives import METRICS
from gpprune.prune import Recipe, parse_pattern

# What a formula decides. The rest of a recipe is what it is given, the same for all.
_DECIDED = ("metric", "allocation", "unit", "pattern", "sparsity")


@dataclass(frozen=True)
class Setting:
    """Where formulas are judged.

    Attributes:
        model: what `gpprune.load_model` takes.
        text: what `gpprune.evals.read_text` takes.
        sparsity: share of weights to prune.
        pattern: which weights compete; None: each recipe's own.
    """

    model: str
    text: str
    sparsity: float
    pattern: str | None

    def of(self, recipe: Recipe) -> Recipe:
        """A recipe as it is followed here.

        Raises:
            UsageError: it cannot have the sparsity or the pattern.
        """
        shape = recipe.shape if self.pattern is None else parse_pattern(self.pattern)
        share = self.sparsity if shape.sparsity is None else shape.sparsity
        return recipe.model_copy(update={"pattern": shape.text, "sparsity": share})


@dataclass(frozen=True)
class Carried:
    """A formula that is carried over, with what goes beside it."""

    name: str
    recipe: Recipe


def carried_over(given: Iterable[str], top: int = 1) -> list[Carried]:
    """Recipes by what a person calls them.

    Args:
        given: each a run directory, a recipe's file, a published metric or formula text.
        top: how many of a run's best formulas.

    Raises:
        UsageError: one is none of these, two are called alike, or they differ in more than their
            formulas.
        GppruneError: a run has nothing to carry over yet, or is damaged.
    """
    found = [each for text in given for each in _named(text, top)]
    if not found:
        raise UsageError("there is nothing to carry over: name a run, a recipe or a formula")
    names = [each.name for each in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two recipes are called {twice[0]!r}: rename a file, or name it once")
    for other in found[1:]:
        beside = (name for name in Recipe.model_fields if name not in _DECIDED)
        ours, own = found[0].recipe, other.recipe
        if differs := [name for name in beside if getattr(ours, name) != getattr(own, name)]:
            raise UsageError(
                f"{other.name!r} differs from {found[0].name!r} in {', '.join(differs)}: carry "
                "over what has one budget"
            )
    return found


def _named(text: str, top: int) -> Iterator[Carried]:
    path = expanded(text)
    if path.is_dir():
        yield from _of_run(path, top)
    elif path.is_file():
        yield Carried(*named_recipe(path))
    else:
        check_no_path(text)
        if path.suffix == ".json":
            raise UsageError(f"there is no recipe {text!r}: name another")
        yield from (Carried(each.name, each.recipe) for each in metric_contenders([text]))


def _of_run(path: Path, top: int) -> Iterator[Carried]:
    with RunDirectory.open(path) as run:
        goal = restored(run)
        best = best_evolved(run, goal.language, top)
    for place, outcome in enumerate(best, start=1):
        name = path.resolve().name + (f" {place}" if place > 1 else "")
        yield Carried(name, goal.recipe(outcome.parsed(goal.language)))


def settings(
    carried: Sequence[Carried],
    models: Sequence[str],
    texts: Sequence[str],
    sparsity: Sequence[float] | None,
    patterns: Sequence[str] | None,
) -> list[Setting]:
    """All combinations, the first one first: that is where the formulas come from.

    Args:
        carried: what is carried over.
        models: one or more.
        texts: likewise.
        sparsity: likewise; None: the recipes' own.
        patterns: likewise; None: the recipes' own.

    Raises:
        UsageError: recipes without a common sparsity and none is given, or a value that is none.
    """
    if sparsity is None:
        shares = sorted({each.recipe.sparsity for each in carried})
        if len(shares) > 1:
            raise UsageError(
                f"the recipes are of the sparsities {', '.join(f'{s:g}' for s in shares)}: say at "
                "which, such as --sparsity 0.5"
            )
        sparsity = shares[:1]
    found: dict[Setting, None] = {}
    given: list[str | None] = [None] if patterns is None else list(patterns)
    for model, text, pattern, share in product(models, texts, given, sparsity):
        implied = None if pattern is None else parse_pattern(pattern).sparsity
        own = pattern if pattern is None else parse_pattern(pattern).text
        setting = Setting(model, text, share if implied is None else implied, own)
        for each in carried:
            own_share = setting.of(each.recipe).sparsity
            if not math.isclose(own_share, setting.sparsity, abs_tol=1e-9):
                raise UsageError(
                    f"the pattern {each.recipe.pattern!r} of {each.name!r} prunes a share of "
                    f"{own_share:g}, not {setting.sparsity:g}: give a --pattern for all, or leave "
                    "--sparsity out"
                )
        found[setting] = None
    return list(found)


def published_for(recipe: Recipe, shapes: Iterable[Sequence[int]]) -> dict[str, list[Recipe]]:
    """The published formulas of the kind that a recipe has, with its budget, by name.

    Metrics stand under their own code's pattern and the recipe's, where that is as strict;
    allocations for the unit of their code, ATP at each difference.

    Args:
        recipe: as it is followed.
        shapes: `[out, in]` of each layer of the model.
    """
    shapes, found = list(shapes), dict[str, list[Recipe]]()
    for name, choices in _choices(recipe):
        for changed in choices:
            pattern = changed.get("pattern", recipe.pattern)
            if all(as_strict(pattern, recipe.pattern, shape) for shape in shapes):
                found.setdefault(name, []).append(recipe.model_copy(update=changed))
    return found


def _choices(recipe: Recipe) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Published formulas by name, each as what it changes of a recipe."""
    if recipe.allocation == "uniform":
        for rival in metric_rivals(recipe.pattern):
            choices = [{"metric": c.formula.text, "pattern": c.setting} for c in rival.choices]
            yield rival.choices[0].name, choices
    elif recipe.metric in METRICS:
        for rival in allocation_rivals():
            choices = [{"allocation": c.formula.text, "unit": c.setting} for c in rival.choices]
            yield rival.choices[0].name.split("(")[0], choices
    else:
        for name, formula in joint_seeds().items():
            scores, shares = (part.text for part in formula.parts)
            rival = metric_rival(name, name.split()[0], formula, recipe.pattern)
            changed = {"metric": scores, "allocation": shares}
            yield name, [{**changed, "pattern": choice.setting} for choice in rival.choices]
