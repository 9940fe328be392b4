"""What a search and a comparison judge and calibrate on, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpprune.evals import settled
from gpprune.files import expanded

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
