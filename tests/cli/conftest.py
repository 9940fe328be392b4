"""Flags that make a command on a tiny model take a second."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def small(tiny_model_dir: Path, text_file: Path) -> list[str]:
    """The tiny model, and little to calibrate on."""
    return [
        *("--model", str(tiny_model_dir)),
        *("--calibration-text", str(text_file)),
        *("--window-length", "32"),
        *("--calibration-samples", "4"),
    ]


@pytest.fixture
def judged(text_file: Path) -> list[str]:
    return ["--text", str(text_file), "--windows", "4"]
