"""Flags that make a command on a tiny model take a second."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text_file(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


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
