"""The weights after each of several shots, in a directory, so that a killed run goes on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.files import file_to_write, forget, remove, whole_file, whole_name
from gpprune.prune.coupled.permutation import Permutation
from gpprune.prune.model.digest import parameters_digest, tokens_digest
from gpprune.prune.model.structure import LinearLayer, linear_layers
from gpprune.prune.recipe import Recipe
from gpprune.prune.report import Shot

RECORD = "shots.json"
_WRITTEN = "synthetic samples"
_WEIGHTS = re.compile(r"shot-\d+\.safetensors")


def check_shots(folder: Path) -> None:
    """See that shots may be kept in a directory: it holds others, or it is still to be made.

    A run that was killed before its first shot was kept leaves one without a record.

    Raises:
        UsageError: something else lies there.
    """
    if os.path.lexists(folder) and not (has_shots(folder) or _holds_ours_alone(folder)):
        raise UsageError(
            f"{str(folder)!r}, where finished shots are kept, is something else: move it away, or "
            "choose another --out"
        )


def has_shots(folder: Path) -> bool:
    """Whether finished shots lie in a directory."""
    return (folder / RECORD).is_file()


def forget_shots(folder: Path) -> None:
    """Remove the shots that are kept in a directory, and the directory if nothing else is there."""
    forget(folder, _is_ours, first=RECORD)


def _is_ours(path: Path) -> bool:
    """Whether the name is that of a record or of weights, which a kill may have left partial."""
    name = whole_name(path.name)
    return name == RECORD or _WEIGHTS.fullmatch(name) is not None


def _holds_ours_alone(folder: Path) -> bool:
    return folder.is_dir() and all(map(_is_ours, folder.iterdir()))


def identity_of(
    model: nn.Module, recipe: Recipe, calibration: Tensor, order: str
) -> dict[str, Any]:
    """What tells one pruning from another."""
    return {
        "recipe": recipe.model_dump(),
        "order": order,
        "calibration": tokens_digest(calibration),
        "model": parameters_digest(model),
    }


class Kept:
    """The weights and masks after the last shot that was finished, in a directory.

    The record is written last and names the file of weights, so that a kill leaves the shot
    before, whole.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = identity

    def shots(self) -> list[Shot]:
        """The shots that are done."""
        if not (self._folder / RECORD).exists():
            return []
        with self._record() as read:
            identity, done = read["identity"], [Shot(**shot) for shot in read["shots"]]
        if identity != self._identity:
            raise UsageError(
                f"{str(self._folder)!r} holds the shots of another recipe, model or calibration "
                "text: remove it, or name another place"
            )
        return done

    def written(self, shots: int) -> Tensor | None:
        """The synthetic samples of all shots, as they are kept after so many."""
        recipe = self._identity["recipe"]
        wanted = recipe.get("synthetic_samples", 0) * recipe.get("shots", 1)
        if not wanted:
            return None
        with self._open(shots) as file:
            found: Tensor = file.get_tensor(_WRITTEN)
            if len(found) != wanted:
                raise ValueError(f"{len(found)} synthetic samples, and not {wanted}")
            return found

    def permutation(self) -> Permutation | None:
        """How channels were permuted before the first shot; None: they were not."""
        with self._record() as read:
            stored = read.get("permutation")
            return None if stored is None else Permutation.read(stored)

    @contextmanager
    def _record(self) -> Iterator[dict[str, Any]]:
        try:
            yield json.loads((self._folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def restore(self, model: nn.Module, shots: int) -> dict[str, Tensor]:
        """Put the weights after so many shots, all that are done, into the model.

        Returns:
            The masks of the layers.
        """
        with self._open(shots) as file:
            return _read(file, linear_layers(model))

    @contextmanager
    def _open(self, shots: int) -> Iterator[Any]:
        try:
            with safe_open(self._folder / self._name(shots), "pt") as file:
                yield file
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> GppruneError:
        return GppruneError(
            f"the shots kept in {str(self._folder)!r} are damaged ({error}): remove it"
        )

    def store(
        self,
        model: nn.Module,
        masks: dict[str, Tensor],
        shots: list[Shot],
        written: Tensor | None,
        permutation: Permutation | None,
    ) -> None:
        """Keep the model's weights after a shot, and then nothing of the shots before."""
        held = {} if written is None else {_WRITTEN: written.cpu().contiguous()}
        for name, layer in linear_layers(model).items():
            # as it is stored: of a model on the CPU there is then no second copy
            held[_stored(name)] = layer.stored.cpu().contiguous()
            held[_mask(name)] = masks[name].cpu().contiguous()
        record = {"identity": self._identity, "shots": [asdict(shot) for shot in shots]}
        if permutation is not None:
            record["permutation"] = permutation.as_dict()
        try:
            with file_to_write(self._folder / self._name(len(shots))) as partial:
                save_file(held, partial)
            whole_file(self._folder / RECORD, json.dumps(record, indent=2) + "\n")
            for path in filter(_is_ours, self._folder.iterdir()):
                if path.name not in (RECORD, self._name(len(shots))):
                    remove(path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise GppruneError(
                f"the shots cannot be kept in {str(self._folder)!r} ({reason}): make room"
            ) from error

    @staticmethod
    def _name(shots: int) -> str:
        return f"shot-{shots}.safetensors"


def _stored(name: str) -> str:
    return f"{name} stored"


def _mask(name: str) -> str:
    return f"{name} mask"


def _read(file: Any, layers: Mapping[str, LinearLayer]) -> dict[str, Tensor]:
    """Put weights that were kept into a model, layer by layer, once all are known to fit.

    Returns:
        The masks of the layers.

    Raises:
        ValueError, SafetensorError: some are missing or do not fit.
    """
    for name, layer in layers.items():
        wanted = {_stored(name): layer.stored.shape, _mask(name): layer.weight.shape}
        for key, shape in wanted.items():
            if file.get_slice(key).get_shape() != list(shape):
                raise ValueError(f"{key!r} has another shape than the model's {list(shape)}")
    for name, layer in layers.items():
        layer.write(layer.oriented(file.get_tensor(_stored(name))))
    return {n: file.get_tensor(_mask(n)).to(layer.weight.device) for n, layer in layers.items()}
