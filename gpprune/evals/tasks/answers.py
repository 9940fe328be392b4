"""What models have answered, kept document by document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError
from gpprune.evals.tasks.quiz import Quiz


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
        file = self._file(quiz)
        if file is None or not file.is_file():
            return {}
        asked = {question.digest for question in quiz.questions}
        found: dict[str, list[Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                digest, answers = entry["question"], entry["answers"]
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut off as it was written
            if digest in asked and isinstance(answers, list):
                found[digest] = answers
        return found

    def keep(self, quiz: Quiz, answers: Mapping[str, list[Any]]) -> None:
        """Add answers by the digest of the question.

        Raises:
            GppruneError: they cannot be written.
        """
        file = self._file(quiz)
        if file is None:
            return
        lines = [json.dumps({"question": q, "answers": a}) + "\n" for q, a in answers.items()]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as written:
                written.write("\n" + "".join(lines))  # on a line of its own after one cut off
        except OSError as error:
            raise GppruneError(f"answers cannot be kept in {str(file)!r} ({error})") from error

    def _file(self, quiz: Quiz) -> Path | None:
        return self._folder and self._folder / f"{self._key}-{quiz.task.name}.jsonl"
