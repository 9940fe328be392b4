"""Write a pruned model as a Hugging Face checkpoint, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded, out_of_room, publish, remove, try_folder, whole_folder
from gpprune.progress import Progress, silent
from gpprune.prune.checkpoint.record import RECORD_FILE, Record
from gpprune.prune.model.digest import model_digest, parameters_digest
from gpprune.prune.model.load import Loaded
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.shapes import Shapes
from gpprune.prune.model.stored import check_finite
from gpprune.prune.model.streamed.finished import ASIDE
from gpprune.prune.model.streamed.opened import Streamed
from gpprune.prune.recipe import Recipe
from gpprune.prune.report import PruneReport


def check_output(out: str | Path) -> Path:
    """See that a checkpoint can be written to ``out``, before the long work.

    It is tried: a folder is made beside ``out`` and removed.

    Raises:
        UsageError: ``out`` exists, or cannot be made.
    """
    path = expanded(out)
    if os.path.lexists(path):
        raise UsageError(f"the output {str(out)!r} exists: choose another --out, or remove it")
    try:
        try_folder(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"the output {str(out)!r} cannot be written ({reason}): choose another --out"
        ) from error
    return path


def save_pruned(
    loaded: Loaded,
    recipe: Recipe,
    report: PruneReport,
    out: str | Path,
    *,
    source: str | None = None,
) -> Path:
    """Save a pruned model, its tokenizer and its recipe.

    The directory holds what ``save_pretrained`` writes (safetensors) and ``gpprune_recipe.json``
    with the recipe, the report, the version of gpprune and digests of the weights before and
    after. Plain transformers loads it. The weights are written in the dtypes of the checkpoint
    that they came from, and in files no larger than its largest where it has several.

    Args:
        loaded: the pruned model with its tokenizer.
        recipe: how it was pruned.
        report: what came of it.
        out: the directory to make; it appears under this name only when it is complete.
        source: SHA-256 of the model before it was pruned, for the record.

    Returns:
        The directory.

    Raises:
        UsageError: ``out`` exists or cannot be written to.
        GppruneError: writing failed, for want of room for instance; nothing is left behind.
    """
    check_output(out)
    with loaded.stored.applied(loaded.model):
        check_finite(loaded.model)
        record = _record(loaded, recipe, report, source, model_digest(loaded))
        return _write(loaded, record, out)


def _record(
    loaded: Loaded, recipe: Recipe, report: PruneReport, source: str | None, digest: str
) -> dict[str, Any]:
    return {
        "model": loaded.name,
        "source_sha256": source,
        "sha256": digest,
        "recipe": recipe.model_dump(),
        "report": report.as_dict(),
    }


def save_streamed(
    streamed: Streamed,
    recipe: Recipe,
    report: PruneReport,
    out: str | Path,
    *,
    source: str,
    progress: Progress = silent,
) -> Path:
    """As `save_pruned`, of a streamed model, whose weights are written.

    Args:
        streamed: pruned to the end; its folder takes the name ``out``.
        recipe: how it was pruned.
        report: what came of it.
        out: the directory, as of `save_pruned`.
        source: SHA-256 of the model before it was pruned.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError, GppruneError: as of `save_pruned`; what is written stays where it is kept.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

    path, loaded, folder = check_output(out), streamed.loaded, streamed.shards.folder
    digest = parameters_digest(loaded.model, streamed.stored.dtypes, progress)
    record = _record(loaded, recipe, report, source, digest)
    with _writing(out), streamed.stored.applied(loaded.model):
        index = streamed.shards.index
        if index is not None:
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
        aside = streamed.kept / ASIDE  # where it lies it would take the weights for old ones
        remove(aside)
        model: Any = loaded.model
        model.save_pretrained(aside, state_dict={})  # all but the weights
        _write_reader(loaded, aside)
        for file in aside.iterdir():
            os.replace(file, folder / file.name)
        _write_record(folder, record)
        publish(folder, path)
    return path


def save_again(
    loaded: Loaded, out: str | Path, *, record: Record | None, report: PruneReport
) -> Path:
    """Save a pruned model that something was done to since: units taken out, or training.

    Where its configuration does not say its shapes, ``gpprune_shapes.json`` lies beside it, and
    `gpprune.prune.load_model` reads it.

    Args:
        loaded: the model.
        out: the directory to make, as of `save_pruned`.
        record: what lay beside it before, if anything, with what was done: it goes on with the new
            numbers.
        report: the zeros that are left.

    Raises:
        UsageError, GppruneError: as of `save_pruned`.
    """
    check_output(out)
    with loaded.stored.applied(loaded.model):
        check_finite(loaded.model)
        if record is None:
            return _write(loaded, None, out)
        again = {
            "model": record.model,
            "source_sha256": record.source,
            "sha256": model_digest(loaded),
            "shrunk": record.shrunk,
            "trainings": list(record.trainings),
            "recipe": record.recipe.model_dump(),
            "report": {**report.as_dict(), **record.notes},
        }
        return _write(loaded, again, out)


def _write(loaded: Loaded, record: dict[str, Any] | None, out: str | Path) -> Path:
    """Write a model, its tokenizer, its own shapes and its record, whole or not at all."""
    path = check_output(out)
    model: Any = loaded.model
    with _writing(out), whole_folder(path) as folder:
        shard = loaded.stored.shard
        model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
        Shapes.of(model).write(folder)
        _write_reader(loaded, folder)
        if record is not None:
            _write_record(folder, record)
    return path


def _write_reader(loaded: Loaded, folder: Path) -> None:
    """Write what makes tokens of text, and of images."""
    loaded.tokenizer.save_pretrained(folder)
    for name, content in loaded.stored.beside.items():
        (folder / name).write_bytes(content)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    text = json.dumps({"gpprune": _version(), **record}, indent=2) + "\n"
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")


@contextmanager
def _writing(out: str | Path) -> Iterator[None]:
    """Turn what goes wrong as a checkpoint is written into one sentence."""
    try:
        with quiet_transformers():
            yield
    except MemoryError:
        raise
    # The writers of weights and tokenizers raise errors of their own, down to a bare Exception.
    except Exception as error:
        remedy = ": free some space and try again" if out_of_room(error) else ""
        raise GppruneError(f"cannot write the checkpoint {str(out)!r} ({error}){remedy}") from error


def _version() -> str:
    try:
        return version("gpprune")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
