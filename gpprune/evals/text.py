"""Text to calibrate and judge on: where it comes from, and how it becomes windows of tokens."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.tables import Table

SPLITS = ("calibration", "validation", "test")
PACKAGED = "wikitext2"

# What the splits are called on the hub.
_HUB_SPLITS = {"calibration": "train", "validation": "validation", "test": "test"}
# A hub text is read up to this length: a thousand windows of a thousand tokens, and no more of a
# data set of terabytes.
_HUB_CHARACTERS = 5_000_000


@dataclass(frozen=True)
class TextSource:
    """A place that text comes from.

    Attributes:
        name: what it is called.
        about: what its specifications are, for a person.
        read: from the specification and the split to the text.
        takes: whether a specification is this source's; by default the name itself is.
    """

    name: str
    about: str
    read: Callable[[str, str], str]
    takes: Callable[[str], bool] | None = None

    def serves(self, spec: str) -> bool:
        """Whether a specification is this source's."""
        return spec == self.name if self.takes is None else self.takes(spec)


def read_text(spec: str, split: str) -> str:
    """The text that a specification names.

    Args:
        spec: ``"wikitext2"``, the packaged excerpt; a local UTF-8 file, of one of JSON lines the
            field ``text``; the id of a data set on the Hugging Face hub with a column ``text``, as
            ``name`` or ``name:configuration``; or what another source of the table takes.
        split: ``"calibration"``, ``"validation"`` or ``"test"``. A local file has no splits and is
            read whole, whatever the split. On the hub, calibration is the split ``train``.

    Raises:
        UsageError: the split does not exist, or the file cannot be read as text or is empty.
        GppruneError: the data set cannot be fetched.
    """
    if split not in SPLITS:
        raise UsageError(f"there is no split {split!r}: choose from {', '.join(SPLITS)}")
    text = source_of(spec).read(spec, split)
    if not text.strip():
        raise UsageError(f"the text {spec!r} is empty: name one with words in it")
    return text


def _read_packaged(spec: str, split: str) -> str:
    file = resources.files("gpprune.evals") / "data" / f"{spec}_{split}.txt"
    return file.read_text(encoding="utf-8")


def _is_path(spec: str) -> bool:
    """Whether a specification can only be, or is, a path on this machine."""
    unlike_hub = spec == "" or spec[0] in "./~" or spec.count("/") > 1 or spec.endswith(".txt")
    return unlike_hub or os.path.exists(spec)  # False, not an error, for a name no file can have


def _read_file(spec: str, split: str) -> str:
    if spec == "":
        raise UsageError(f"the text has no name: name a file, {PACKAGED!r} or a data set")
    path = os.path.expanduser(spec)
    if os.path.isdir(path):
        raise UsageError(f"the text {spec!r} is a directory: name a file in it")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as cause:
        raise UsageError(
            f"there is no text file {spec!r}: name an existing file, {PACKAGED!r} or the id of a "
            "data set"
        ) from cause
    except UnicodeDecodeError as cause:
        raise UsageError(f"the file {spec!r} is not UTF-8 text: {cause.reason}") from cause
    except (OSError, ValueError) as cause:  # ValueError: a zero byte in the name
        reason = getattr(cause, "strerror", None) or cause
        raise UsageError(f"the file {spec!r} cannot be read: {reason}") from cause
    if "\0" in text:
        raise UsageError(f"the file {spec!r} is not text: it holds zero bytes")
    return _texts_of(spec, text) if spec.endswith(".jsonl") else text


def _texts_of(spec: str, lines: str) -> str:
    """The field ``text`` of a file of JSON lines."""
    rows = []
    for number, line in enumerate(filter(str.strip, lines.split("\n")), start=1):
        try:
            row = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            row = None
        if not isinstance(row, str):
            raise UsageError(f"row {number} of {spec!r} has no field 'text' with a text in it")
        rows.append(row)
    return join_rows(rows, len(lines))


def _read_hub(spec: str, split: str) -> str:
    name, _, configuration = spec.partition(":")
    try:
        # Imported here: it takes seconds, and most runs never need it.
        from datasets import load_dataset

        rows = load_dataset(name, configuration or None, split=_HUB_SPLITS[split], streaming=True)
        return join_rows((row["text"] for row in rows), _HUB_CHARACTERS)
    except KeyError as cause:
        raise UsageError(f"the data set {spec!r} has no column {cause}: name another") from cause
    except Exception as cause:  # datasets raises its own, its client's and its parsers' errors
        raise GppruneError(
            f"the text {spec!r} is no local file, and no data set could be read under that name "
            f"({_first_line(cause)}): name a file or {PACKAGED!r}"
        ) from cause


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def join_rows(rows: Iterable[str | None], limit: int) -> str:
    """The rows of a data set as one text: no blank rows, one newline between two.

    WikiText-2 from the hub becomes the text that is packaged here, only longer.

    Args:
        rows: the column ``text``; a row may end in a newline or be blank.
        limit: characters after which no further row is read.
    """
    kept: list[str] = []
    size = 0
    for row in rows:
        if row is None or not row.strip():
            continue
        kept.append(row.rstrip("\n"))
        size += len(kept[-1]) + 1
        if size >= limit:
            break
    return "\n".join(kept)


# The latest entry is asked first, so that one that is added goes before these; the hub takes all.
TEXT_SOURCES: Table[TextSource] = Table(
    "text source",
    [
        TextSource("hub", "the id of a data set with a column text", _read_hub, lambda spec: True),
        TextSource("file", "a local UTF-8 file", _read_file, _is_path),
        TextSource(PACKAGED, "the packaged excerpt of WikiText-2", _read_packaged),
    ],
)


def source_of(spec: str) -> TextSource:
    """The source that a specification is of: the latest entry of the table that takes it."""
    return next(source for source in reversed(list(TEXT_SOURCES.values())) if source.serves(spec))


def settled(spec: str) -> str:
    """A specification that means the same from any directory: a file's absolute path."""
    if source_of(spec).name != "file":
        return spec
    return os.path.abspath(os.path.expanduser(spec)) if spec else spec


def tokenize(text: str, tokenizer: Any) -> Tensor:
    """Tokenise a whole text once, without special tokens.

    Args:
        text: any text.
        tokenizer: a transformers tokenizer.

    Returns:
        ``[tokens]``, int64.
    """
    # verbose=False: a text longer than the model's context is what is wanted here, no warning.
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def windows(tokens: Tensor, count: int | None, length: int, *, spread: bool = False) -> Tensor:
    """Non-overlapping windows of a text.

    Args:
        tokens: ``[tokens]``.
        count: how many windows; None: as many as there are.
        length: tokens a window, at least 2 (the first token of a window is only context).
        spread: at even distances over the whole text; else the first ones. Neighbouring windows
            are of one article, and tell of it.

    Returns:
        ``[count, length]``.

    Raises:
        UsageError: the text is too short for one window or for ``count``, or a number is absurd.
    """
    _check_length(length)
    available = len(tokens) // length
    if available == 0:
        raise UsageError(
            f"the text has {len(tokens)} tokens, which is less than one window of {length}: "
            "give more text or a smaller window length"
        )
    if count is None:
        count = available
    if count < 1:
        raise UsageError(f"the number of windows is {count}: give at least 1")
    if count > available:
        raise UsageError(
            f"the text has {len(tokens)} tokens, which makes {available} windows of {length} and "
            f"not {count}: ask for fewer or shorter windows, or give more text"
        )
    grid = tokens[: available * length].view(available, length)
    if not spread:
        return grid[:count]
    return grid[[(2 * at + 1) * available // (2 * count) for at in range(count)]]


def calibration_samples(tokens: Tensor, count: int, length: int, seed: int) -> Tensor:
    """Random sequences of a text, drawn as Wanda's code draws them (Sun et al. 2023).

    Args:
        tokens: ``[tokens]``.
        count: how many sequences; they may overlap.
        length: tokens a sequence.
        seed: of the starts.

    Returns:
        ``[count, length]``.

    Raises:
        UsageError: the text is shorter than one sequence, or a number is absurd.
    """
    _check_length(length)
    if count < 1:
        raise UsageError(f"the number of calibration samples is {count}: give at least 1")
    if len(tokens) <= length:
        raise UsageError(
            f"the calibration text has {len(tokens)} tokens, which is not more than one sample of "
            f"{length}: give more text or a smaller window length"
        )
    draw = random.Random(seed)
    starts = [draw.randint(0, len(tokens) - length - 1) for _ in range(count)]
    return torch.stack([tokens[start : start + length] for start in starts])


def _check_length(length: int) -> None:
    if length < 2:
        raise UsageError(f"the window length is {length}: give at least 2 tokens")
