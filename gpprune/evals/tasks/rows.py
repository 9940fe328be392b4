"""Rows of tasks from local files, in the field names of the hub's data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpprune.errors import UsageError
from gpprune.evals.tasks.table import Task
from gpprune.files import expanded

Row = dict[str, Any]
Parts = Mapping[str, Sequence[Row]]
"""The rows of a task by the part that lm-eval asks for: what is judged, and examples."""

SEARCHED = "train"
"""The part that a search goes by, as the hub calls it."""

_KINDS = ("jsonl", "parquet")


def local_rows(task: Task, folder: str | Path) -> dict[str, Parts]:
    """The rows of a task in a folder, by lm-eval's name of the task or subject.

    Judged are ``NAME.judge.jsonl``, else ``NAME.jsonl`` (or ``.parquet``); of a task with subjects
    ``NAME/SUBJECT.judge.jsonl``, else ``NAME/SUBJECT.test.jsonl``. Examples before a question are
    of ``NAME.train.jsonl``, or ``NAME/SUBJECT.dev.jsonl``, if that is there. A search goes by
    ``NAME.search.jsonl`` or ``NAME/SUBJECT.search.jsonl``: then the split is `SEARCHED`.

    Raises:
        UsageError: there is no such file, it cannot be read, or a row lacks a field.
    """
    path = expanded(folder)
    if not path.is_dir():
        raise UsageError(f"there is no directory {str(folder)!r} of task data: name another")
    searched = ("search",) if task.split == SEARCHED else None
    if not task.subjects:
        return {task.stock: _parts(task, path, task.name, searched or ("judge", ""))}
    inside = path / task.name
    named = [f.name.split(".")[0] for kind in _KINDS for f in inside.glob(f"*.{kind}")]
    if not named:
        raise UsageError(
            f"there are no rows of {task.name!r} in {str(folder)!r}: it needs files "
            f"{task.name}/SUBJECT.judge.jsonl or {task.name}/SUBJECT.test.jsonl"
        )
    return {
        f"{task.stock}{subject}": _parts(task, inside, subject, searched or ("judge", "test"))
        for subject in sorted(set(named))
    }


def _parts(task: Task, folder: Path, name: str, judged: Sequence[str]) -> Parts:
    file = next((f for part in judged if (f := _file(folder, name, part))), None)
    if file is None:
        names = " or ".join(".".join(filter(None, (name, part, "jsonl"))) for part in judged)
        raise UsageError(
            f"there are no rows of {name!r} in {str(folder)!r}: it needs {names} (or .parquet)"
        )
    parts: dict[str, Sequence[Row]] = {task.split: _rows(task, file)}
    examples = _file(folder, name, task.fewshot) if task.fewshot else None
    if examples is not None:
        parts[task.fewshot] = _rows(task, examples)
    return parts


def _file(folder: Path, name: str, part: str) -> Path | None:
    stem = f"{name}.{part}" if part else name
    found = (folder / f"{stem}.{kind}" for kind in _KINDS)
    return next((file for file in found if file.is_file()), None)


def _rows(task: Task, file: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        UsageError: it cannot be read, has none, or one lacks a field.
    """
    try:
        rows = _parquet(file) if file.suffix == ".parquet" else _lines(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"the rows {str(file)!r} cannot be read ({error})") from error
    if not rows:
        raise UsageError(f"the file {str(file)!r} has no rows: give it some")
    for number, row in enumerate(rows, start=1):
        lacks = [name for name in task.fields if name not in row]
        if lacks:
            raise UsageError(
                f"row {number} of {str(file)!r} has no field {lacks[0]!r}: rows of {task.name} "
                f"have {', '.join(task.fields)}"
            )
    return rows


def _lines(file: Path) -> list[Row]:
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no JSON object")
        found.append(row)
    return found


def _parquet(file: Path) -> list[Row]:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        rows: list[Row] = read_table(file).to_pylist()
    except ArrowException as error:
        raise ValueError(str(error)) from error
    return rows
