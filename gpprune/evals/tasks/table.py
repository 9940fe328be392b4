"""The tasks that papers on pruning judge by, each an entry: what lm-eval calls it, and its rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gpprune.errors import UsageError
from gpprune.tables import Table

ACCURACY, NORMALISED = "acc", "acc_norm"


@dataclass(frozen=True)
class Task:
    """A set of documents with answers, and how lm-eval asks for them.

    Attributes:
        name: what `--tasks` calls it; also of its files of rows.
        about: what is asked, for a person.
        stock: lm-eval's name of it; of one with subjects, what their names begin with.
        split: the part of the data that lm-eval judges on.
        fields: what every row has, by the names of the hub.
        normalised: whether accuracy by the likelihood a character is measured too.
        figure: lm-eval's name of the accuracy, with its filter.
        fewshot: the part that examples before a question come from; empty: there are none.
        shots: how many examples, if that part is there and has so many.
        subjects: whether there is a file a subject, in a folder of the task's name.
    """

    name: str
    about: str
    stock: str
    split: str
    fields: tuple[str, ...]
    normalised: bool = False
    figure: str = f"{ACCURACY},none"
    fewshot: str = ""
    shots: int = 0
    subjects: bool = False

    @property
    def chosen(self) -> bool:
        """Whether answers are chosen, rather than written."""
        return self.figure.startswith(ACCURACY)


_QUESTION = ("question", "choices", "answerKey")

TASKS: Table[Task] = Table(
    "task",
    [
        Task(
            "boolq",
            "a question on a passage: yes or no",
            "boolq",
            "validation",
            ("question", "passage", "label"),
        ),
        Task(
            "rte",
            "whether a sentence follows from another",
            "rte",
            "validation",
            ("sentence1", "sentence2", "label"),
        ),
        Task(
            "hellaswag",
            "which of four endings a scene has",
            "hellaswag",
            "validation",
            ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
            normalised=True,
        ),
        Task(
            "winogrande",
            "which of two nouns a blank stands for",
            "winogrande",
            "validation",
            ("sentence", "option1", "option2", "answer"),
        ),
        Task(
            "arc_easy",
            "questions of science at school",
            "arc_easy",
            "test",
            _QUESTION,
            normalised=True,
        ),
        Task(
            "arc_challenge",
            "the harder of them",
            "arc_challenge",
            "test",
            _QUESTION,
            normalised=True,
        ),
        Task(
            "openbookqa",
            "questions on simple facts of science",
            "openbookqa",
            "test",
            ("question_stem", "choices", "answerKey"),
            normalised=True,
        ),
        Task(
            "piqa",
            "which of two ways to do a thing works",
            "piqa",
            "validation",
            ("goal", "sol1", "sol2", "label"),
            normalised=True,
        ),
        Task(
            "mmlu",
            "questions of 57 subjects with four answers",
            "mmlu_",
            "test",
            ("question", "choices", "answer"),
            fewshot="dev",
            shots=5,
            subjects=True,
        ),
        Task(
            "gsm8k",
            "sums in words, answered by writing",
            "gsm8k",
            "test",
            ("question", "answer"),
            figure="exact_match,strict-match",
            fewshot="train",
            shots=5,
        ),
    ],
)
"""The tasks by name."""

GROUPS: dict[str, tuple[str, ...]] = {
    "seven": (
        *("boolq", "rte", "hellaswag", "winogrande"),
        *("arc_easy", "arc_challenge", "openbookqa"),
    )
}
"""Names of several: the seven of Wanda's table, whose unweighted mean papers give."""


def named_tasks(names: Iterable[str]) -> list[Task]:
    """Tasks by their names and those of `GROUPS`, each once.

    Raises:
        UsageError: there is none of a name.
    """
    found: dict[str, Task] = {}
    for name in names:
        if name not in GROUPS and name not in TASKS:
            known = ", ".join([*GROUPS, *TASKS])
            raise UsageError(f"there is no task {name!r}: choose from {known}")
        for each in GROUPS.get(name, (name,)):
            found[each] = TASKS[each]
    if not found:
        raise UsageError("no task is named: choose from " + ", ".join([*GROUPS, *TASKS]))
    return list(found.values())
