"""A text that is read at once, where a packaged one takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpprune.discover import Texts

SHORT = str(Path(__file__).parent / "data" / "before" / "text.txt")


def short_texts(**amounts: Any) -> Texts:
    """Some 6,000 words to judge and calibrate on."""
    return Texts(SHORT, SHORT, **amounts)
