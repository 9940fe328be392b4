"""Where gpprune keeps what it can make again: the unpacked default model, the built machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$GPPRUNE_CACHE``, else the user's cache directory."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("GPPRUNE_CACHE") or user_cache_dir("gpprune")).expanduser()
