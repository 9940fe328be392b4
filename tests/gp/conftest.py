"""Shared by the tests of the search: the toy search, which also runs as a program of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """The module toy_search.py beside this file."""
    path = Path(__file__).with_name("toy_search.py")
    spec = importlib.util.spec_from_file_location("toy_search", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
