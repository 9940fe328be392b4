"""Ask a model the questions of tasks through lm-eval, a few documents at a time.

lm-eval's own tasks make the prompts and judge the answers; what a model answers is kept document
by document, so that an interrupted run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gpprune.errors import GppruneError
from gpprune.evals.tasks.answers import Answers
from gpprune.evals.tasks.quiz import Question, Quiz, in_a_sentence, quiet
from gpprune.evals.tasks.table import ACCURACY, NORMALISED
from gpprune.progress import Progress, silent
from gpprune.prune.model.run import quiet_model

_CHUNK = 8  # documents that are judged between two that are kept


@dataclass(frozen=True)
class Marks:
    """How a model did on each document of a quiz.

    Attributes:
        task: its name.
        questions: the documents' digests, in order.
        scores: by figure ("acc", "acc_norm"), 0 or 1 a document.
        chance: the accuracy of guessing.
        cut: how many documents are longer than the model takes, and lost their beginning.
    """

    task: str
    questions: tuple[str, ...]
    scores: Mapping[str, tuple[float, ...]]
    chance: float
    cut: int = 0


@torch.no_grad()
def ask(
    made: Callable[[], nn.Module],
    tokenizer: Any,
    config: Any,
    quiz: Quiz,
    answers: Answers,
    *,
    batch: int = 4,
    progress: Progress = silent,
) -> Marks:
    """Ask a model the questions of a quiz.

    Args:
        made: gives it, of the transformers library, in the dtype that it is judged in; not called
            where all answers are kept.
        tokenizer: its.
        config: its configuration, which says how much text it takes.
        quiz: what is asked.
        answers: where they are kept.
        batch: how many sequences go through at once.
        progress: called as ``progress("boolq", done, documents)``.
    """
    from lm_eval.models.huggingface import HFLM

    label, total = quiz.task.name, len(quiz.questions)
    known = answers.of(quiz)
    open_ = [question for question in quiz.questions if question.digest not in known]
    progress(label, total - len(open_), total)
    if open_:
        model = made()
        with quiet(f"the model on {label!r}"), quiet_model(model):
            asking = HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=batch, add_bos_token=False
            )
        for start in range(0, len(open_), _CHUNK):
            chunk = open_[start : start + _CHUNK]
            with in_a_sentence(f"the model on {label!r}"), quiet_model(model):
                found = _asked(asking, chunk)
            _check_finite(label, found)
            answers.keep(quiz, found)
            known |= found
            progress(label, total - len(open_) + start + len(chunk), total)
    return replace(_marked(quiz, known), cut=_too_long(quiz, tokenizer, config))


def _too_long(quiz: Quiz, tokenizer: Any, config: Any) -> int:
    """How many documents lm-eval takes the beginning from, which a model has no place for."""
    from lm_eval.models import huggingface as lm_eval
    from lm_eval.models.utils import normalize_gen_kwargs

    longest: int = lm_eval.resolve_max_length(
        config, tokenizer, default=lm_eval.HFLM._DEFAULT_MAX_LENGTH
    )

    def over(request: Any) -> bool:
        context, more = request.arguments
        if isinstance(more, str):
            return _length(tokenizer, context + more) > longest + 1
        room: int = normalize_gen_kwargs(more)["max_gen_toks"]
        return _length(tokenizer, context) > longest - room

    return sum(any(map(over, question.instances)) for question in quiz.questions)


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _asked(asking: Any, questions: Sequence[Question]) -> dict[str, list[Any]]:
    """What a model answers, by the digest of the question: likelihoods, or what it writes."""
    requests = [instance for question in questions for instance in question.instances]
    ways: dict[str, list[Any]] = {}
    for request in requests:
        ways.setdefault(request.request_type, []).append(request)
    given: dict[int, Any] = {}
    for way, own in ways.items():
        for request, answer in zip(own, getattr(asking, way)(own, disable_tqdm=True), strict=True):
            given[id(request)] = list(answer) if isinstance(answer, tuple) else answer
    return {q.digest: [given[id(one)] for one in q.instances] for q in questions}


def _check_finite(label: str, answers: Mapping[str, list[Any]]) -> None:
    """See that likelihoods are numbers: of none the first answer would be the likeliest.

    Raises:
        GppruneError: one is not.
    """
    for given in answers.values():
        if any(isinstance(each, list) and not math.isfinite(each[0]) for each in given):
            raise GppruneError(
                f"the model gives an answer of {label!r} no finite likelihood: it is damaged, or "
                "overflows in this dtype; judge it in float32"
            )


def _marked(quiz: Quiz, known: Mapping[str, list[Any]]) -> Marks:
    """Judge answers by lm-eval's rules."""
    task = quiz.task
    figures = {ACCURACY: task.figure} | (
        {NORMALISED: f"{NORMALISED},none"} if task.normalised else {}
    )
    sources = {id(question.source): question.source for question in quiz.questions}
    for question in quiz.questions:
        for instance, answer in zip(question.instances, known[question.digest], strict=True):
            instance.resps = [tuple(answer) if isinstance(answer, list) else answer]
            instance.filtered_resps = {}
    with quiet(f"the answers to {task.name!r}"):
        for source in sources.values():
            source.apply_filters()
        scores: dict[str, list[float]] = {name: [] for name in figures}
        for question in quiz.questions:
            for name, figure in figures.items():
                metric, _, way = figure.partition(",")
                answer = [instance.filtered_resps[way] for instance in question.instances]
                result = question.source.process_results(question.document, answer)
                scores[name].append(float(result[metric]))
    guesses = [1 / q.choices if q.choices > 1 else 0.0 for q in quiz.questions]
    return Marks(
        task.name,
        tuple(question.digest for question in quiz.questions),
        {name: tuple(own) for name, own in scores.items()},
        sum(guesses) / len(guesses),
    )
