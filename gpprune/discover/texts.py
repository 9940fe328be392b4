"""What a search and a comparison judge and calibrate on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.evals import settled
from gpprune.files import expanded
from gpprune.prune import Loaded

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
    """

    text: str = "wikitext2"
    calibration_text: str = "wikitext2"
    windows: int = TEST_WINDOWS
    window_length: int = TEST_LENGTH
    calibration_samples: int = 8
    seed: int = 0
    task_data: str | None = None
    documents: int = 128

    def settled(self) -> Texts:
        """The same texts, named so that they are found from any directory."""
        rows = None if self.task_data is None else str(expanded(self.task_data).absolute())
        calibration_text = settled(self.calibration_text)
        return replace(
            self, text=settled(self.text), calibration_text=calibration_text, task_data=rows
        )


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
