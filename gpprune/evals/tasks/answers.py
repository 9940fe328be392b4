"""What models have answered, kept document by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpprune.evals.tasks.quiz import Quiz
from gpprune.journal import Journal


class Answers:
    """What a model has answered, kept in a file a task as it goes.

    Args:
        folder: made when the first answer is kept; None: nothing is kept.
        identity: of the model and how it is asked: another's answers are not taken.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        stated = json.dumps(dict(identity), sort_keys=True)
        self._key = hashlib.sha256(stated.encode()).hexdigest()[:16]
        self._folder = folder

    def of(self, quiz: Quiz) -> dict[str, list[Any]]:
        """Those that are kept of a quiz, by the digest of the question."""
        asked = {question.digest for question in quiz.questions}
        kept = self._journal(quiz).read()
        return {digest: answers for digest, answers in kept.items() if digest in asked}

    def keep(self, quiz: Quiz, answers: Mapping[str, list[Any]]) -> None:
        """Add answers by the digest of the question.

        Raises:
            GppruneError: they cannot be written.
        """
        self._journal(quiz).add(answers)

    def _journal(self, quiz: Quiz) -> Journal:
        return Journal(self._folder and self._folder / f"{self._key}-{quiz.task.name}.jsonl")
