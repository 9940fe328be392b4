"""Where models come from: one entry for each kind of specification."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpprune.errors import UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.smollm2 import smollm2_folder
from gpprune.tables import Table

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True)
class ModelSource:
    """A place that models come from.

    Attributes:
        name: what it is called; if ``takes`` is None, the one specification that it serves.
        folder: from the specification to the directory of a Hugging Face checkpoint (or to a
            hub id); what takes long calls the progress, if there is one.
        takes: whether a specification is this source's; None: its name is.
        about: what to give for it, as in "give ... or ..."; empty for its name.
    """

    name: str
    folder: Callable[[str, Progress], str]
    takes: Callable[[str], bool] | None = None
    about: str = ""

    def serves(self, spec: str) -> bool:
        """Whether a specification is this source's."""
        return spec == self.name if self.takes is None else self.takes(spec)


def locate(spec: str, progress: Progress = silent) -> str:
    """The directory or hub id that a specification stands for.

    The source that was added last is asked first, so that whatever is added comes before
    directories, and directories before the hub.

    Raises:
        UsageError: no source knows it.
    """
    return source_of(spec).folder(spec, progress)


def source_of(spec: str) -> ModelSource:
    """The source that serves a specification.

    Raises:
        UsageError: no source knows it.
    """
    for source in reversed(tuple(MODEL_SOURCES.values())):
        if source.serves(spec):
            return source
    raise UsageError(f"there is no model {spec!r}: give {known()}")


def known() -> str:
    """What may be given for a model, as in "a hub id such as org/name, or smollm2"."""
    *first, last = (source.about or source.name for source in MODEL_SOURCES.values())
    return f"{', '.join(first)} or {last}" if first else last


def _is_path(spec: str) -> bool:
    """Whether a specification is, or can only be, a path on this machine."""
    # A first part that is a directory here was meant as a path: runs/pruned is no hub id.
    below = "/" in spec and os.path.isdir(os.path.dirname(spec))
    return below or not _HUB_ID.fullmatch(spec) or os.path.exists(spec)


def _directory(spec: str, progress: Progress) -> str:
    path = os.path.expanduser(spec)
    if os.path.isfile(path):
        raise UsageError(f"{spec!r} is a file: give the directory of a Hugging Face checkpoint")
    if not os.path.isdir(path):
        raise UsageError(f"there is no model directory {spec!r}: give {known()}")
    if not os.path.isfile(os.path.join(path, "config.json")):
        raise UsageError(
            f"the directory {spec!r} holds no model: it has no config.json; give a directory "
            "that save_pretrained or gpprune prune wrote"
        )
    return path


def _hub(spec: str, progress: Progress) -> str:
    return spec


MODEL_SOURCES: Table[ModelSource] = Table(
    "model source",
    [
        ModelSource("hub", _hub, lambda spec: True, "a hub id such as org/name"),
        ModelSource("directory", _directory, _is_path, "an existing directory"),
        ModelSource("smollm2", lambda spec, progress: smollm2_folder(progress)),
    ],
)


def auto_class(config: Any) -> Any:
    """Transformers' class that makes a model of a configuration; None: it is of no decoder.

    A causal language model, or one that reads images before it goes on in words.
    """
    import transformers

    shown = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if shown and not getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForImageTextToText  # the causal one may lack the towers
    causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if causal else None
