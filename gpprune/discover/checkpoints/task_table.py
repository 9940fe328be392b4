"""What models did on tasks, side by side: tables, sentences, JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpprune.evals.tasks import (
    GROUPS,
    NORMALISED,
    Marks,
    Mean,
    Quiz,
    above_chance,
    accuracy,
    difference,
    guessing,
)
from gpprune.evals.tasks.accuracy import SIGNAL
from gpprune.evals.tasks.table import ACCURACY
from gpprune.prune import Recipe


@dataclass(frozen=True)
class OnTasks:
    """A model with its marks.

    Attributes:
        name: what it is called.
        recipe: how the model was pruned for this; None: it was not.
        marks: a task each.
        seconds: how long it took, pruning included, since it last went on.
    """

    name: str
    recipe: Recipe | None
    marks: tuple[Marks, ...]
    seconds: float


@dataclass(frozen=True)
class TaskTable:
    """Models on tasks.

    Attributes:
        models: the first is the dense one, which the others are compared with.
        quizzes: what was asked.
        stated: what the figures rest on, beside: seed, dtype, versions.
    """

    models: tuple[OnTasks, ...]
    quizzes: tuple[Quiz, ...]
    stated: Mapping[str, Any]

    @cached_property
    def figures(self) -> list[tuple[int, str, str]]:
        """The rows of a table: which task, which figure, and what the row is called."""
        found = []
        for at, quiz in enumerate(self.quizzes):
            found.append((at, ACCURACY, quiz.task.name))
            if quiz.task.normalised:
                found.append((at, NORMALISED, f"{quiz.task.name}, norm."))
        return found

    @cached_property
    def means(self) -> dict[str, list[int]]:
        """The groups all of whose tasks were asked, and which those are."""
        places = {quiz.task.name: at for at, quiz in enumerate(self.quizzes)}
        groups = {group: [places.get(name, -1) for name in own] for group, own in GROUPS.items()}
        return {group: own for group, own in groups.items() if min(own) >= 0}

    def mean(self, model: OnTasks, group: str) -> Mean:
        """The unweighted mean accuracy of a group's tasks, as papers give it."""
        return Mean.unweighted([accuracy(model.marks[at]) for at in self.means[group]])

    def behind(self, model: OnTasks, group: str) -> Mean:
        """The same of the paired differences to the dense model."""
        dense = self.models[0].marks
        return Mean.unweighted([difference(model.marks[at], dense[at]) for at in self.means[group]])

    def accuracies(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: accuracy in per cent, in brackets where guessing may have it too."""
        rows = []
        for at, figure, name in self.figures:
            own = [model.marks[at] for model in self.models]
            cells = [_bracketed(accuracy(m, figure), above_chance(m, figure)) for m in own]
            error = f"{100 * accuracy(own[0], figure).error:.1f}"
            rows.append([name, _percent(own[0].chance), cells[0], f"± {error}", *cells[1:]])
        for group in self.means:
            chance = Mean.unweighted(
                [guessing(self.models[0].marks[at]) for at in self.means[group]]
            )
            found = [self.mean(model, group) for model in self.models]
            told = [each.mean - chance.mean > SIGNAL * chance.error for each in found]
            cells = [_bracketed(each, tells) for each, tells in zip(found, told, strict=True)]
            error = f"± {100 * found[0].error:.1f}"
            rows.append([f"mean of {group}", _percent(chance.mean), cells[0], error, *cells[1:]])
        names = [model.name for model in self.models]
        return ["%", "chance", names[0], "error", *names[1:]], rows

    def differences(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: points more than the dense model has, with the standard error."""
        dense, others = self.models[0].marks, self.models[1:]
        rows = [
            [name, *(_points(difference(m.marks[at], dense[at], figure)) for m in others)]
            for at, figure, name in self.figures
        ]
        for group in self.means:
            rows.append([f"mean of {group}", *(_points(self.behind(m, group)) for m in others)])
        return ["points to dense", *(model.name for model in others)], rows

    def tables(self) -> Iterator[tuple[str, list[str], list[list[str]]]]:
        """Tables for a reader: a title, columns, and rows of text."""
        yield f"{self.stated['model']}: answered rightly", *self.accuracies()
        if len(self.models) > 1:
            yield "the same documents, against the dense model", *self.differences()

    @property
    def sentences(self) -> list[str]:
        """What the figures rest on, and what they do not tell, for a reader."""
        said = []
        for quiz in self.quizzes:
            few = f" of {quiz.whole:,}" if len(quiz.questions) < quiz.whole else ", all"
            shots = f", {quiz.shots} examples before each" if quiz.shots else ""
            if quiz.task.fewshot and not quiz.shots:
                shots = f", without examples: there are no rows of {quiz.task.fewshot!r}"
            said.append(f"{quiz.task.name}: {len(quiz.questions):,}{few} documents{shots}")
        for model in self.models:
            said += [
                f"{own.task}: {own.cut:,} documents are longer than {model.name} takes, and lose "
                "their beginning"
                for own in model.marks
                if own.cut
            ]
        dense = self.models[0]
        told = [m.task for m in dense.marks if any(above_chance(m, f) for f in m.scores)]
        at_chance = [m.task for m in dense.marks if m.task not in told]
        if at_chance:
            said.append(
                f"the dense model is no better than guessing on {', '.join(at_chance)}: what is "
                f"lost there says nothing; {', '.join(told) or 'no task'} carries a signal"
            )
        return said

    def as_dict(self) -> dict[str, Any]:
        """All of it, every document's outcome too, as plain values for JSON."""
        asked = [
            {
                "task": quiz.task.name,
                "documents": len(quiz.questions),
                "of": quiz.whole,
                "examples": quiz.shots,
                "chance": self.models[0].marks[at].chance,
                "questions": list(self.models[0].marks[at].questions),
            }
            for at, quiz in enumerate(self.quizzes)
        ]
        models = [self._model(model) for model in self.models]
        return {"tasks": asked, "models": models, "stated": dict(self.stated)}

    def _model(self, model: OnTasks) -> dict[str, Any]:
        dense = self.models[0].marks
        tasks: dict[str, Any] = {}
        for at, figure, _ in self.figures:
            marks = model.marks[at]
            tasks.setdefault(marks.task, {"cut": marks.cut})[figure] = {
                **_plain(accuracy(marks, figure)),
                "above_chance": above_chance(marks, figure),
                "difference": _plain(difference(marks, dense[at], figure)),
                "scores": list(marks.scores[figure]),
            }
        means = {
            group: {
                **_plain(self.mean(model, group)),
                "difference": _plain(self.behind(model, group)),
            }
            for group in self.means
        }
        recipe = None if model.recipe is None else model.recipe.model_dump()
        return {
            "name": model.name,
            "recipe": recipe,
            "tasks": tasks,
            "means": means,
            "seconds": model.seconds,
        }


def _plain(found: Mean) -> dict[str, float | None]:
    """For JSON, which has no NaN: of one document there is no error."""
    return {"mean": found.mean, "error": found.error if math.isfinite(found.error) else None}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _bracketed(found: Mean, tells: bool) -> str:
    return _percent(found.mean) if tells else f"({_percent(found.mean)})"


def _points(found: Mean) -> str:
    return f"{100 * found.mean:+.1f} ± {100 * found.error:.1f}"
