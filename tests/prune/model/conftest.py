"""A model that a test may damage."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
