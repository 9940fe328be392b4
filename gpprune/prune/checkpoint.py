"""Write a pruned model as a Hugging Face checkpoint, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded, out_of_room, try_folder, whole_folder
from gpprune.prune.model.digest import model_digest
from gpprune.prune.model.load import Loaded
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.shapes import Shapes
from gpprune.prune.model.stored import check_finite
from gpprune.prune.recipe import Recipe
from gpprune.prune.report import PruneReport

RECORD_FILE = "gpprune_recipe.json"


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


@dataclass(frozen=True)
class Record:
    """What a checkpoint of gpprune says of itself.

    Attributes:
        model: what was pruned, as it was called.
        recipe: how.
        zeros: how many weights of each linear layer are zero, by its name.
        source: SHA-256 of the model before it was pruned, see `gpprune.prune.model_digest`; None
            where it was not taken.
        digest: the same of the pruned model.
        shrunk: whether units were taken out afterwards, so that groups of N:M are no longer whole.
        trainings: how it was trained afterwards, as JSON has it.
        notes: what its report says that no weights do, such as of shots, as JSON has it.
    """

    model: str
    recipe: Recipe
    zeros: dict[str, int]
    source: str | None
    digest: str | None
    shrunk: bool = False
    trainings: tuple[dict[str, Any], ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """What was pruned and how, for a reader."""
        recipe = self.recipe
        parts = [recipe.metric, f"pattern {recipe.pattern}", f"sparsity {recipe.sparsity:g}"]
        parts += [f"update {recipe.update}"] if recipe.update != "none" else []
        parts += [f"channels permuted by {recipe.permute}"] if recipe.permute else []
        parts += [f"{recipe.shots} shots"] if recipe.shots > 1 else []
        parts += ["then shrunk"] if self.shrunk else []
        if epochs := sum(int(each["epochs"]) for each in self.trainings):
            parts.append(f"then trained for {epochs} epoch{'s' if epochs > 1 else ''}")
        return f"pruned from {self.model!r} by {', '.join(parts)}"

    @property
    def claims(self) -> list[str]:
        """What it says that can be compared with the weights."""
        pattern = self.recipe.shape
        whole = pattern.sparsity is not None and not self.shrunk
        groups = [f"every group of {pattern.text}"] if whole else []
        weights = [] if self.digest is None else ["the weights' SHA-256"]
        return ["the zeros of every layer", *groups, *weights]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the zeros."""
        names = {"model": self.model, "source_sha256": self.source, "sha256": self.digest}
        return {**names, "recipe": self.recipe.model_dump()}


_NOTES = ("shots", "permutation", "experts")  # of a report


class _StoredLayer(BaseModel):
    name: str
    zeros: int


class _StoredReport(BaseModel):
    model_config = ConfigDict(extra="allow")

    layers: list[_StoredLayer]


class _StoredTraining(BaseModel):
    model_config = ConfigDict(extra="allow")

    epochs: PositiveInt


class _Stored(BaseModel):
    """What of the file is read, beside the recipe."""

    model: str
    source_sha256: str | None = None
    sha256: str | None = None
    shrunk: bool = False
    trainings: list[_StoredTraining] = []
    report: _StoredReport


def read_record(folder: str | Path) -> Record | None:
    """What lies beside a checkpoint's weights; None if there is no such file.

    Raises:
        UsageError: the file cannot be read, or is no record.
    """
    path = expanded(folder) / RECORD_FILE
    if not path.is_file():
        return None
    recipe = Recipe.read(path)
    try:
        stored = _Stored.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"the record {str(path)!r}, {where}: {first['msg'].lower()}") from error
    zeros = {layer.name: layer.zeros for layer in stored.report.layers}
    digests = stored.source_sha256, stored.sha256
    trainings = tuple(each.model_dump() for each in stored.trainings)
    extra = stored.report.model_extra or {}
    notes = {name: extra[name] for name in _NOTES if name in extra}
    return Record(stored.model, recipe, zeros, *digests, stored.shrunk, trainings, notes)


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
        record = {
            "model": loaded.name,
            "source_sha256": source,
            "sha256": model_digest(loaded),
            "recipe": recipe.model_dump(),
            "report": report.as_dict(),
        }
        return _write(loaded, record, out)


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
    try:
        with quiet_transformers(), whole_folder(path) as folder:
            shard = loaded.stored.shard
            model.save_pretrained(folder, **({} if shard is None else {"max_shard_size": shard}))
            Shapes.of(model).write(folder)
            loaded.tokenizer.save_pretrained(folder)
            if record is not None:
                text = json.dumps({"gpprune": _version(), **record}, indent=2) + "\n"
                (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    except MemoryError:
        raise
    # The writers of weights and tokenizers raise errors of their own, down to a bare Exception.
    except Exception as error:
        remedy = ": free some space and try again" if out_of_room(error) else ""
        raise GppruneError(f"cannot write the checkpoint {str(out)!r} ({error}){remedy}") from error
    return path


def _version() -> str:
    try:
        return version("gpprune")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
