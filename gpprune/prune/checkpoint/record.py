"""What a checkpoint of gpprune says of itself, in a file beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from gpprune.errors import UsageError
from gpprune.files import expanded
from gpprune.prune.recipe import Recipe

RECORD_FILE = "gpprune_recipe.json"


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


_NOTES = ("shots", "permutation", "experts", "removed")  # of a report


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
