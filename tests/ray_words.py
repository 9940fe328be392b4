"""The toy fitness as workers of a Ray cluster make it: a module that they can import."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError
from gpprune.primitives import METRIC, Formula, Language

_PATH = Path(__file__).parent / "gp" / "toy_search.py"


def made(given: dict[str, Any], cores: int) -> tuple[Marked, Language]:
    """A toy fitness that leaves its process's number in a folder."""
    if given.get("refused"):
        raise GppruneError("there is no model here")
    Path(given["folder"], f"pid-{os.getpid()}").touch()
    spec = importlib.util.spec_from_file_location("toy_search", _PATH)
    assert spec is not None and spec.loader is not None
    toy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toy)
    return Marked(toy.Words(pause=given.get("pause", 0)), given), METRIC


class Marked:
    """Does something else to candidates that it is told of: always, or the first time only."""

    def __init__(self, words: Any, given: dict[str, Any]) -> None:
        self.words, self.given, self.cases = words, given, words.cases

    def prepare(self, formula: Formula) -> Any:
        marked = self.given.get("marked", ())
        if formula.text in marked and self._again(marked.index(formula.text)):
            how = self.given["how"]
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "memory":
                raise MemoryError
            if how == "short":
                return lambda start, stop: [0.0]
            time.sleep(600)
        return self.words.prepare(formula)

    def _again(self, at: int) -> bool:
        seen = Path(self.given["folder"], f"seen-{at}")
        try:
            seen.touch(exist_ok=not self.given.get("once"))
        except FileExistsError:
            return False
        return True
