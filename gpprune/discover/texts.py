"""What a search and a comparison judge and calibrate on, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.evals import (
    LOSSES,
    ImageRow,
    calibration_samples,
    image_rows,
    image_samples,
    read_text,
    settled,
    tokenize,
    windows,
)
from gpprune.files import expanded
from gpprune.prune import Loaded
from gpprune.prune.model.run import show_images

TEST_WINDOWS = 10
TEST_LENGTH = 1024
# The first windows of a text are of two or three articles. Over all of the text it takes more.
TEST_SPREAD = 20


@dataclass(frozen=True)
class Texts:
    """Texts by what `gpprune.evals.read_text` takes, and how much of them.

    Attributes:
        text: what is judged on.
        calibration_text: what is calibrated on.
        windows: how many windows are judged.
        window_length: tokens a window, and a calibration sequence.
        calibration_samples: how many sequences are calibrated on.
        seed: of the places of these sequences.
        task_data: for a loss of tasks a folder of their rows; None: the hub's.
        documents: of each such task that a search goes by.
        more_texts: what a search judges on beside `text`: it goes by the mean loss over all, which
            ranks as the mean of their differences to the dense model does.
    """

    text: str = "wikitext2"
    calibration_text: str = "wikitext2"
    windows: int = TEST_WINDOWS
    window_length: int = TEST_LENGTH
    calibration_samples: int = 8
    seed: int = 0
    task_data: str | None = None
    documents: int = 128
    more_texts: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[str, ...]:
        """All that a search judges on."""
        return (self.text, *self.more_texts)

    def check(self, loss: str) -> None:
        """See that what a search judges on are several texts, or one, of this loss.

        Raises:
            UsageError: one is given twice, or the loss is of tasks, which take one text at most.
        """
        names = [settled(spec) for spec in self.judged]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise UsageError(f"the text {self.judged[place]!r} is given twice: give others")
        if self.more_texts and LOSSES.find(loss).cases is not None:
            raise UsageError(
                f"the loss {loss!r} is of tasks, which stand beside one text at most: give one"
            )

    def settled(self) -> Texts:
        """The same texts, named so that they are found from any directory."""
        rows = None if self.task_data is None else str(expanded(self.task_data).absolute())
        return replace(
            self,
            text=settled(self.text),
            calibration_text=settled(self.calibration_text),
            task_data=rows,
            more_texts=tuple(map(settled, self.more_texts)),
        )


def short_names(names: Sequence[str]) -> list[str]:
    """Models or texts without the folders before them, unless two are then called alike."""
    found = {name: name.rstrip("/").rsplit("/", 1)[-1] for name in names}
    return [*names] if len(set(found.values())) < len(found) else [found[name] for name in names]


# Allocations are told apart by long windows of several articles: on SmolLM2-135M at 70 % the best
# of 132 on one article was 5 % better there than an allocation that beats it by 16 % on test text.
METRIC_TEXTS = Texts(windows=8, window_length=512, calibration_samples=16)
LAYERED_TEXTS = Texts(windows=6, window_length=1024, calibration_samples=8)


def check_length(loaded: Loaded, length: int) -> None:
    """See that a model with a table of positions has as many as a window is long."""
    model: Any = loaded.model
    limit = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or length <= limit:
        return
    words = model.get_input_embeddings()
    parts = (part for part in model.modules() if part is not words)
    tables = (part for part in parts if isinstance(part, nn.Embedding))
    # some keep a few rows before the first position
    if any(limit <= table.num_embeddings <= limit + 8 for table in tables):
        raise UsageError(
            f"the window length {length} is more than the {limit} positions that the model "
            f"{loaded.name!r} knows: give --window-length {limit} or less"
        )


def check_known(loaded: Loaded, spec: str, tokens: Tensor) -> None:
    """See that the model has an embedding of every token."""
    embedding: Any = loaded.model
    rows = embedding.get_input_embeddings().weight.shape[0]
    if len(tokens) and int(tokens.max()) >= rows:
        raise UsageError(
            f"the text {spec!r} holds the token {int(tokens.max())}, but the model "
            f"{loaded.name!r} has embeddings of {rows}: use its own tokenizer, or a text "
            "without its special tokens"
        )


class Material:
    """The texts of a workbench as tokens of its model, each read once."""

    def __init__(
        self, texts: Texts, loaded: Loaded, read: dict[tuple[str, str], str] | None = None
    ) -> None:
        """Read nothing yet.

        Args:
            texts: what is judged and calibrated on.
            loaded: the model, which is shown the images that texts hold.
            read: texts that were read before, by specification and split.
        """
        self._given, self._loaded = texts, loaded
        self.read = {} if read is None else read
        self._tokens: dict[tuple[str, str], Tensor] = {}
        self._samples: Tensor | None = None

    def tokens(self, spec: str, split: str) -> Tensor:
        """A text's tokens, `[tokens]`."""
        if (spec, split) not in self._tokens:
            if (spec, split) not in self.read:
                self.read[spec, split] = read_text(spec, split)
            tokens = tokenize(self.read[spec, split], self._loaded.tokenizer)
            check_known(self._loaded, spec, tokens)
            self._tokens[spec, split] = tokens
        return self._tokens[spec, split]

    def windows(self, spec: str, split: str, spread: bool) -> Tensor:
        """See `Workbench.windows`."""
        count, length = self._given.windows, self._given.window_length
        if (rows := image_rows(spec)) is not None:
            own = {"validation": rows[::2], "test": rows[1::2]}.get(split, rows)
            return self._seen(own, count, once=True)
        tokens = self.tokens(spec, split)
        if spread and self._without_parts(spec):
            tokens = tokens[: len(tokens) - count * length]
        return windows(tokens, count, length, spread=spread)

    def test_windows(self, spec: str, spread: bool) -> Tensor:
        """See `Workbench.test_windows`."""
        if image_rows(spec) is not None:
            return self.windows(spec, "test", spread)
        tokens = self.tokens(spec, "test")
        if not self._without_parts(spec):
            count = TEST_SPREAD if spread else TEST_WINDOWS
            return windows(tokens, count, TEST_LENGTH, spread=spread)
        count, length = self._given.windows, self._given.window_length
        windows(tokens, 2 * count, length)  # there must be as many to search on
        return windows(tokens[len(tokens) - count * length :], count, length)

    def calibration(self) -> Tensor:
        """See `Workbench.calibration`."""
        if self._samples is None:
            given = self._given
            if (rows := image_rows(given.calibration_text)) is not None:
                # of a text that is judged on too, what the report is not judged on
                own = rows[::2] if given.calibration_text in given.judged else rows
                self._samples = self._seen(own, given.calibration_samples, once=False)
            else:
                tokens = self.tokens(given.calibration_text, "calibration")
                amounts = (given.calibration_samples, given.window_length, given.seed)
                self._samples = calibration_samples(tokens, *amounts)
        return self._samples

    def _without_parts(self, spec: str) -> bool:
        return torch.equal(*(self.tokens(spec, split) for split in ("validation", "test")))

    def _seen(self, rows: Sequence[ImageRow], count: int, *, once: bool) -> Tensor:
        """Sequences of rows, with their images wherever the model is run on them."""
        amounts = (count, self._given.window_length, self._given.seed)
        tokens, shown = image_samples(rows, self._loaded, *amounts, once=once)
        show_images(self._loaded.model, tokens, shown)
        return tokens
