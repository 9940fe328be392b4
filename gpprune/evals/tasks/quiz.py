"""The questions of tasks, as lm-eval asks them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.evals.tasks.rows import SEARCHED, Parts, local_rows
from gpprune.evals.tasks.table import Task
from gpprune.progress import Progress, silent

DOCUMENTS = 150
"""Of each task by default: some 1.5 points of error on the mean of seven."""

_SEED = 1234  # lm-eval's, of the examples before a question


@dataclass(frozen=True, eq=False)
class Question:
    """A document of a task, as lm-eval asks it.

    Attributes:
        digest: SHA-256 of all that is asked.
        place: which of the task's documents it is.
        instances: lm-eval's requests, a choice each, or one to write an answer.
        source: lm-eval's task that it is of.
        document: as lm-eval has it.
    """

    digest: str
    place: int
    instances: Sequence[Any]
    source: Any
    document: Any

    @property
    def choices(self) -> int:
        """How many answers there are to choose from; 1: it is written."""
        return len(self.instances)


@dataclass(frozen=True, eq=False)
class Quiz:
    """The documents of a task that are judged.

    Attributes:
        task: which.
        questions: a seeded draw of its documents, or all.
        whole: how many documents it has.
        shots: how many examples stand before each question.
    """

    task: Task
    questions: Sequence[Question]
    whole: int
    shots: int


def quizzes(
    tasks: Sequence[Task],
    *,
    data: str | Path | None = None,
    documents: int | None = DOCUMENTS,
    seed: int = 0,
    searched: bool = False,
    progress: Progress = silent,
) -> list[Quiz]:
    """The questions of tasks.

    Args:
        tasks: which.
        data: a folder of rows, see `local_rows`; None: the hub's data sets.
        documents: of each task, drawn at random without regard to their order; None: all.
        seed: of the draw.
        searched: whether a search is to go by them: then it is other documents than are judged on,
            of the hub those of the training part.
        progress: called as ``progress("reading tasks", done, total)``.

    Raises:
        UsageError: lm-eval is not installed, or the rows are not there.
        GppruneError: the hub's data set cannot be fetched.
    """
    manager = _manager()
    found = []
    for done, task in enumerate(tasks):
        progress("reading tasks", done, len(tasks))
        own = replace(task, split=SEARCHED) if searched else task
        found.append(_quiz(manager, own, data, documents, seed))
    progress("reading tasks", len(tasks), len(tasks))
    return found


@cache  # it reads thousands of files
def _made(manager: Callable[[], Any]) -> Any:
    return manager()


def _manager() -> Any:
    try:
        with redirect_stderr(StringIO()):  # what it logs as it is imported
            from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            f"tasks are asked by lm-eval, which cannot be used here ({error}): pip install "
            "'gpprune[tasks]'"
        ) from error
    return _made(TaskManager)


def _quiz(
    manager: Any, task: Task, data: str | Path | None, documents: int | None, seed: int
) -> Quiz:
    local = None if data is None else local_rows(task, data)
    with quiet(f"the data of {task.name!r}", "; name a folder of rows where there is no hub"):
        loaded = _loaded(manager, task, local)
    shots = 0
    for own in loaded.values():
        shots = max(shots, own.config.num_fewshot or 0)
        own.set_fewshot_seed(_SEED)
    places = [(name, at) for name, own in loaded.items() for at in range(len(own.task_docs))]
    if documents is not None and documents < len(places):
        draw = random.Random(f"{seed} {task.name}")
        places = sorted(draw.sample(places, documents))
    questions: list[Question] = []
    for name, own in loaded.items():
        chosen = [at for which, at in places if which == name]
        if chosen:
            with quiet(f"the prompts of {name!r}"):
                own.build_all_requests(samples=chosen)
            added = list(_questions(own, chosen))
            for question in added:
                _check_answer(name, question)
            questions += added
    whole = sum(len(own.task_docs) for own in loaded.values())
    return Quiz(task, questions, whole, shots)


def _loaded(manager: Any, task: Task, local: Mapping[str, Parts] | None) -> dict[str, Any]:
    """lm-eval's tasks by name: one, or one a subject."""
    found: dict[str, Any]
    if local is None:
        name = task.stock.rstrip("_")  # of one with subjects the group of them
        own_or_training = name if task.split != SEARCHED else _of_training(name)
        found = manager.load([own_or_training])["tasks"]
        for own in found.values():
            own.set_config("num_fewshot", task.shots)
        return found
    shots = min([task.shots, *(len(parts.get(task.fewshot, ())) for parts in local.values())])
    asked = [
        {"task": name, "custom_dataset": _given(parts), **_splits(task, shots)}
        for name, parts in local.items()
    ]
    found = manager.load([{"group": "gpprune", "task": asked}])["tasks"]
    return found


def _of_training(name: str) -> dict[str, Any]:
    """lm-eval's task, judged on its training part."""
    parts = {"training_split": None, "validation_split": SEARCHED, "test_split": None}
    return {"group": "gpprune", "task": [{"task": name, **parts}]}


def _splits(task: Task, shots: int) -> dict[str, Any]:
    """The parts that are read, in lm-eval's words.

    Args:
        task: which.
        shots: how many examples each of its subjects has rows for.
    """
    return {
        "num_fewshot": shots,
        "fewshot_split": task.fewshot if shots else None,
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{'validation' if task.split == SEARCHED else task.split}_split": task.split,
    }


def _given(parts: Parts) -> Any:
    """A function that lm-eval asks for a data set of these rows."""

    def made(**_: object) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({name: Dataset.from_list(list(rows)) for name, rows in parts.items()})

    return made


def _questions(own: Any, chosen: Sequence[int]) -> Iterator[Question]:
    by_document: dict[int, list[Any]] = {}
    for instance in own.instances:
        by_document.setdefault(instance.doc_id, []).append(instance)
    for at, instances in sorted(by_document.items()):
        instances.sort(key=lambda instance: instance.idx)
        asked = json.dumps([instance.arguments for instance in instances], sort_keys=True)
        digest = hashlib.sha256(asked.encode()).hexdigest()
        yield Question(digest, chosen[at], instances, own, instances[0].doc)


def _check_answer(name: str, question: Question) -> None:
    """See that a document says which answer is right: else all models would be wrong.

    Raises:
        UsageError: it does not.
    """
    if question.choices < 2:
        return
    try:
        right = right_answer(question)
    except (ValueError, TypeError, KeyError):
        right = None
    if not isinstance(right, int) or not 0 <= right < question.choices:
        raise UsageError(
            f"row {question.place + 1} of {name!r} does not say which of its {question.choices} "
            "answers is right, as where labels are hidden or of another type: correct it"
        )


def right_answer(question: Question) -> Any:
    """Which of a question's choices is right, from 0."""
    own, document = question.source, question.document
    right = own.doc_to_text(document) if own.multiple_input else own.doc_to_target(document)
    return own.doc_to_choice(document).index(right) if isinstance(right, str) else right


@contextmanager
def quiet(what: str, remedy: str = "") -> Iterator[None]:
    """Without lm-eval's bars and warnings; what goes wrong becomes a sentence.

    Args:
        what: is going on.
        remedy: what to do about it, if that is known.

    Raises:
        GppruneError: naming what is going on.
    """
    with redirect_stderr(StringIO()), in_a_sentence(what, remedy):
        yield


@contextmanager
def in_a_sentence(what: str, remedy: str = "") -> Iterator[None]:
    """Turn what goes wrong into a sentence; see `quiet`, which also hides a progress of ours."""
    try:
        yield
    except (KeyboardInterrupt, MemoryError, GppruneError):
        raise
    except Exception as error:  # lm-eval, datasets and the hub raise whatever they like
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise GppruneError(f"lm-eval fails on {what} ({reason}){remedy}") from error
