"""How likely a model finds the right answers of tasks: a loss that a search can go by.

Accuracy jumps where a likelihood does not. A document's loss here is 1 - p of the right answer
among its choices, p being the softmax of their log-likelihoods: a smooth and bounded function of
the margins between the right answer and the others, and of a model that knows nothing the share
of wrong choices. Where papers give the accuracy by the likelihood a character, log-likelihoods are
divided by the choices' characters and multiplied by their mean. All are then divided by the
choices' mean number of tokens, so that p is not 0 or 1 of most documents. (-log p is not bounded:
on SmolLM2 at 50 % a metric that ruins the model was the best by it, since it is sure of nothing.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.evals.losses.loss import Cases, Loss, Reading
from gpprune.evals.losses.read import separate_head
from gpprune.evals.tasks.quiz import DOCUMENTS, Question, quizzes, right_answer
from gpprune.evals.tasks.table import Task, named_tasks

TASK = "task:"
TEXT = "text"  # among the tasks: the windows of the text as well

_BATCH = 1024  # tokens, padding included, that go through the model at once


@dataclass(frozen=True, eq=False)
class Choice:
    """An answer after what is asked.

    Attributes:
        tokens: of both.
        answer: how many of them are the answer's.
        characters: of the answer.
    """

    tokens: Sequence[int]
    answer: int
    characters: int


@dataclass(frozen=True, eq=False)
class Document:
    """Choices, of which one is right; or a window of text, which is one choice.

    Attributes:
        choices: at least one.
        right: which of them.
        by_characters: whether likelihoods are of a character each.
    """

    choices: Sequence[Choice]
    right: int = 0
    by_characters: bool = False


def task_loss(name: str) -> Loss:
    """The loss of tasks that a name states, such as ``task:piqa+hellaswag`` or ``task:piqa+text``.

    A case holds documents of every task, and with ``text`` a window; its loss is the mean over the
    tasks, and the text, of their own means.

    Raises:
        UsageError: there is no such task, or one whose answers are written.
    """
    names = name.removeprefix(TASK).split("+")
    tasks = named_tasks([each for each in names if each != TEXT] or [""])
    if written := [task.name for task in tasks if not task.chosen]:
        raise UsageError(
            f"the answers of {written[0]!r} are written, not chosen: it has no likelihood of the "
            "right one to go by"
        )
    text = TEXT in names
    return Loss(
        name=name,
        about=f"1 - p of the right answer of {', '.join(task.name for task in tasks)}",
        unit="1 - p a document",
        on=lambda model, dense: CasesOfDocuments(model),
        mean="answer_error",
        cases=lambda reading: _cases(tasks, text, reading),
    )


def _cases(tasks: Sequence[Task], text: bool, reading: Reading) -> Cases:
    """Documents of tasks, dealt out to as many cases as there are windows.

    Raises:
        UsageError: lm-eval is not installed, or rows are not there or fewer than cases.
    """
    if reading.split not in ("validation", "test"):
        raise UsageError(f"tasks have no split {reading.split!r}: choose validation or test")
    searched, count = reading.split == "validation", len(reading.windows)
    asked = quizzes(
        tasks,
        data=reading.data,
        documents=reading.documents if searched else DOCUMENTS,
        seed=reading.seed,
        searched=searched,
    )
    parts: list[list[list[Document]]] = []  # a part, its cases, their documents
    read: dict[str, list[str]] = {}
    for quiz in asked:
        if len(quiz.questions) < count:
            raise UsageError(
                f"{quiz.task.name!r} has {len(quiz.questions)} documents for {count} cases: give "
                "more, or fewer --windows"
            )
        own = quiz.questions[: len(quiz.questions) // count * count]  # as many in every case
        made = [document_of(question, quiz.task, reading) for question in own]
        parts.append([made[at::count] for at in range(count)])
        read[quiz.task.name] = [question.digest for question in own]
    if text:
        parts.append([[_of_window(window)] for window in reading.windows])
    rows = packed([[part[at] for part in parts] for at in range(count)])
    return Cases(rows, read)


def document_of(question: Question, task: Task, reading: Reading) -> Document:
    """A question as tokens, cut as lm-eval cuts it: no token begins the text.

    The last token is foretold and not read, so that there is one more than the model takes.
    """
    choices = []
    for instance in question.instances:
        context, answer = instance.arguments
        before = _ids(reading.tokenizer, context.rstrip())  # spaces belong to the answer
        tokens = _ids(reading.tokenizer, context + answer)
        own = len(tokens) - len(before)
        if not before or own < 1:
            raise UsageError(
                f"document {question.place + 1} of {task.name!r} has nothing before an answer, or "
                "no answer: leave it out"
            )
        kept = tokens if reading.longest is None else tokens[-(reading.longest + 1) :]
        choices.append(Choice(kept, min(own, len(kept) - 1), len(answer.strip())))
    return Document(choices, right_answer(question), task.normalised)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _of_window(window: Tensor) -> Document:
    return Document([Choice(window.tolist(), len(window) - 1, 1)])


def packed(cases: Sequence[Sequence[Sequence[Document]]]) -> Tensor:
    """Cases as ``[cases, width]``, int64; each has parts, and a part documents."""
    rows = [torch.tensor(list(_numbers(case))) for case in cases]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _numbers(parts: Sequence[Sequence[Document]]) -> Iterator[int]:
    """A case as whole numbers: every count stands before what it counts."""
    yield len(parts)
    for documents in parts:
        yield len(documents)
        for document in documents:
            yield from (len(document.choices), document.right, int(document.by_characters))
            for choice in document.choices:
                yield from (len(choice.tokens), choice.answer, choice.characters)
                yield from choice.tokens


def unpacked(row: Tensor) -> list[list[Document]]:
    """The case that `packed` has written, from its parts to their documents."""
    numbers = iter(row.tolist())

    def choice() -> Choice:
        length, answer, characters = next(numbers), next(numbers), next(numbers)
        return Choice([next(numbers) for _ in range(length)], answer, characters)

    def document() -> Document:
        count, right, by_characters = next(numbers), next(numbers), next(numbers)
        return Document([choice() for _ in range(count)], right, bool(by_characters))

    return [[document() for _ in range(next(numbers))] for _ in range(next(numbers))]


class CasesOfDocuments:
    """The loss of a case of documents under a causal language model; see `task_loss`."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._head = separate_head(model)

    @torch.no_grad()
    def __call__(self, case: Tensor) -> float:
        """The mean over its parts of the mean over their documents.

        Args:
            case: ``[width]``, int64, as `task_loss` makes it.
        """
        parts = unpacked(case)
        choices = [c for part in parts for document in part for c in document.choices]
        found = iter(self.likelihoods(choices))
        means = []
        for part in parts:
            losses = [_loss(document, [next(found) for _ in document.choices]) for document in part]
            means.append(sum(losses) / len(losses))
        return sum(means) / len(means)

    @torch.no_grad()
    def likelihoods(self, choices: Sequence[Choice]) -> list[float]:
        """The log-likelihood of each answer after what is asked, in nats."""
        order = sorted(range(len(choices)), key=lambda at: len(choices[at].tokens))
        found = [0.0] * len(choices)
        while order:
            longest = len(choices[order[-1]].tokens)
            taken = [order.pop() for _ in range(min(len(order), max(1, _BATCH // longest)))]
            values = self._batch([choices[at] for at in taken])
            for at, value in zip(taken, values, strict=True):
                found[at] = value
        return found

    def _batch(self, choices: Sequence[Choice]) -> list[float]:
        """Of some that go through the model at once, padded behind, which no token looks at."""
        longest = max(len(choice.tokens) for choice in choices) - 1
        inputs = torch.zeros(len(choices), longest, dtype=torch.int64)
        wanted = torch.zeros_like(inputs)
        of_answer = torch.zeros_like(inputs, dtype=torch.bool)
        for at, choice in enumerate(choices):
            tokens, end = torch.tensor(choice.tokens), len(choice.tokens) - 1
            inputs[at, :end], wanted[at, :end] = tokens[:-1], tokens[1:]
            of_answer[at, end - choice.answer : end] = True
        inputs, wanted, of_answer = (each.to(self._device) for each in (inputs, wanted, of_answer))
        if self._head is None:
            logits = self._model(input_ids=inputs, use_cache=False).logits[of_answer]
        else:
            states = self._model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = self._head(states[of_answer])
        logs = torch.log_softmax(logits.float(), dim=-1)
        chosen = logs.gather(1, wanted[of_answer][:, None])[:, 0].double().cpu()
        parts = torch.split(chosen, [choice.answer for choice in choices])
        return [float(part.sum()) for part in parts]


def _loss(document: Document, likelihoods: Sequence[float]) -> float:
    """1 - p of the right answer; or of a window's tokens, in nats a token."""
    if len(document.choices) == 1:
        return -likelihoods[0] / document.choices[0].answer
    scores = torch.tensor(likelihoods, dtype=torch.float64)
    if document.by_characters:
        sizes = torch.tensor([max(1, c.characters) for c in document.choices], dtype=torch.float64)
        scores = scores / sizes * sizes.mean()
    scores = scores / (sum(choice.answer for choice in document.choices) / len(scores))
    return 1 - float(scores.softmax(dim=0)[document.right])
