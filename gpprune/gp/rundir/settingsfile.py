"""The settings file of a run directory: TOML, versioned, and known to be whole."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.settings import SearchSettings

FORMAT = 2
SETTINGS = "settings.toml"

# A file cut off in the middle of a line can still be valid TOML ("offspring = 1" of 12).
_LAST_LINE = "# end of settings"


def settings_text(search: SearchSettings, problem: Mapping[str, Any]) -> str:
    """Return the file's text; entries of the problem that are None are left out.

    Raises:
        UsageError: the problem holds what TOML or JSON cannot.
    """
    document = {
        "gpprune": {"format": FORMAT},
        "search": search.model_dump(exclude_none=True),
        "problem": _without_none(dict(problem)),
    }
    try:
        text = tomli_w.dumps(document)
        json.dumps(document)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the run's problem cannot be written down: {error}") from error
    return f"{text}\n{_LAST_LINE}\n"


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _document(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        raise GppruneError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise GppruneError(f"{path} cannot be read: {error}; restore it from a copy") from error


def read_settings(directory: Path) -> tuple[SearchSettings, dict[str, Any]]:
    """Return the settings and the problem of a run directory.

    Raises:
        UsageError: there is no such file, it is of another format version or holds a bad value.
        GppruneError: it is damaged, cut off, or cannot be read.
    """
    path = directory / SETTINGS
    if not path.is_file():
        raise UsageError(f"{directory} is not a run directory: it has no {SETTINGS}")
    text, document = _document(path)
    header = document.get("gpprune")
    version = header.get("format") if isinstance(header, dict) else None
    if version is not None and version != FORMAT:
        raise UsageError(
            f"{path} is of format {version}, but this gpprune reads format {FORMAT}: use the"
            " version that made it"
        )
    search, problem = document.get("search"), document.get("problem")
    if (
        version is None
        or not isinstance(search, dict)
        or not isinstance(problem, dict)
        or not text.rstrip().endswith(_LAST_LINE)
    ):
        raise GppruneError(f"{path} is cut off: restore it from a copy")
    try:
        return SearchSettings(**search), problem
    except UsageError as error:
        raise UsageError(f"{path} cannot be used: {error}") from error
