"""What long work has found so far, beside the file that it will end in."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded


def file_to_come(out: str | Path) -> Path:
    """Where a file is to be written, seen before the work.

    Raises:
        UsageError: there is one already, or no directory for it.
    """
    path = expanded(out)
    if path.exists():
        raise UsageError(f"the output {str(out)!r} exists: choose another --out, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {str(path.parent)!r} to write {path.name!r} in")
    return path


def as_json(document: Any) -> str:
    """A document as JSON, which has no NaN and no infinity: they are null."""
    return json.dumps(_finite(document), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Journal:
    """Values by a text, kept in a file line by line as they come, for work that may be cut off.

    Args:
        path: made when the first value is kept; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> dict[str, list[Any]]:
        """What is kept; a line that was cut off as it was written is left out."""
        if self._path is None or not self._path.is_file():
            return {}
        found: dict[str, list[Any]] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                name, values = entry["of"], entry["values"]
            except (ValueError, KeyError, TypeError):
                continue
            if isinstance(name, str) and isinstance(values, list):
                found[name] = values
        return found

    def add(self, values: Mapping[str, list[Any]]) -> None:
        """Keep more.

        Raises:
            GppruneError: it cannot be written.
        """
        if self._path is None or not values:
            return
        lines = [json.dumps({"of": name, "values": own}) + "\n" for name, own in values.items()]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as written:
                written.write("\n" + "".join(lines))  # on a line of its own after one cut off
        except OSError as error:
            raise GppruneError(f"nothing can be kept in {str(self._path)!r} ({error})") from error
