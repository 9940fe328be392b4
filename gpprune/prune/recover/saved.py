"""What has been trained after each step, in a directory, so that a killed training goes on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.files import file_to_write, forget, whole_name
from gpprune.prune.model.structure import LinearLayer
from gpprune.prune.recover.trained import Trained

_FILE = "trained.safetensors"
_BLOCK = re.compile(r"block-\d+\.safetensors")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Saved:
    """Keeps what is trained, and Adam's moments, after each step: one file, replaced as a whole.

    Args:
        folder: made if it is missing; the caller's to remove, see `forget`.
        identity: what tells this training from others, as JSON has it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._path = folder / _FILE
        self._identity = json.dumps(identity, sort_keys=True)

    def restore(self, adam: torch.optim.Adam, trained: Trained) -> list[float]:
        """Put what was kept into what is trained.

        Returns:
            The loss of each step that is done; empty: nothing was kept.

        Raises:
            UsageError: another training is kept there.
            GppruneError: it is damaged.
        """
        folder = self._path.parent
        if folder.is_dir() and any(_BLOCK.fullmatch(path.name) for path in folder.iterdir()):
            raise _another(folder)
        if not self._path.exists():
            return []
        with _reading(self._path) as file:
            about = file.metadata() or {}
        if about.get("identity") != self._identity:
            raise _another(self._path.parent)
        with _reading(self._path) as file, torch.no_grad():
            losses = [float(loss) for loss in json.loads(about["losses"])]
            for at, own in enumerate(trained.tensors):
                own.copy_(file.get_tensor(f"{at} value"))
                adam.state[own] = {
                    "step": torch.tensor(float(len(losses))),
                    **{m: file.get_tensor(f"{at} {m}").to(own.device) for m in _MOMENTS},
                }
        trained.write()
        return losses

    def store(self, adam: torch.optim.Adam, trained: Trained, losses: list[float]) -> None:
        """Keep what is trained after a step, in place of the step before.

        Raises:
            GppruneError: there is no room.
        """
        held: dict[str, Tensor] = {}
        for at, own in enumerate(trained.tensors):
            held[f"{at} value"] = own.detach().cpu().contiguous()
            state = adam.state[own]
            held |= {f"{at} {m}": state[m].cpu().contiguous() for m in _MOMENTS if m in state}
        about = {"identity": self._identity, "losses": json.dumps(losses)}
        _write(self._path, held, about)


class SavedBlocks:
    """Keeps the weights of each block that is trained, one file a block.

    Args:
        folder: made if it is missing; the caller's to remove, see `forget`.
        identity: what tells this training from others, as JSON has it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self._identity = json.dumps(identity, sort_keys=True)

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block}.safetensors"

    def restore(self, block: int, layers: Sequence[LinearLayer]) -> list[float] | None:
        """Put a block's weights as they were kept into the model.

        Args:
            block: its place.
            layers: of it.

        Returns:
            The mean loss of each epoch; None: the block was not kept.

        Raises:
            UsageError: another training is kept there.
            GppruneError: it is damaged.
        """
        path = self._path(block)
        if (self._folder / _FILE).exists():  # of all weights together
            raise _another(self._folder)
        if not path.exists():
            return None
        with _reading(path) as file, torch.no_grad():
            about = file.metadata() or {}
            if about.get("identity") != self._identity:
                raise _another(path.parent)
            for at, layer in enumerate(layers):
                layer.stored.copy_(file.get_tensor(str(at)))
            return [float(loss) for loss in json.loads(about["losses"])]

    def store(self, block: int, layers: Sequence[LinearLayer], losses: list[float]) -> None:
        """Keep a block's weights.

        Raises:
            GppruneError: there is no room.
        """
        held = {str(at): layer.stored.cpu().contiguous() for at, layer in enumerate(layers)}
        about = {"identity": self._identity, "losses": json.dumps(losses)}
        _write(self._path(block), held, about)


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise GppruneError(
            f"what is kept in {str(path.parent)!r} is damaged ({error}): remove it"
        ) from error


def _another(folder: Path) -> UsageError:
    return UsageError(f"{str(folder)!r} holds another training: remove it, or choose another --out")


def _write(path: Path, held: dict[str, Tensor], about: dict[str, str]) -> None:
    """A file in place of the one before, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_to_write(path) as partial:
            save_file(held, partial, about)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise GppruneError(
            f"the training cannot be kept in {str(path.parent)!r} ({reason}): make room"
        ) from error


def check_saved(folder: Path) -> None:
    """See that a training may be kept in a directory: it holds one, or is still to be made.

    Raises:
        UsageError: something else lies there.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and all(map(_is_ours, folder.iterdir()))):
        raise UsageError(
            f"{str(folder)!r}, where the training is kept, is something else: move it away, or "
            "choose another --out"
        )


def has_saved(folder: Path) -> bool:
    """Whether a training is kept in a directory."""
    return folder.is_dir() and any(path.is_file() and _is_ours(path) for path in folder.iterdir())


def forget_saved(folder: Path) -> None:
    """Remove the training that is kept in a directory, and the directory."""
    forget(folder, _is_ours)


def _is_ours(path: Path) -> bool:
    name = whole_name(path.name)
    return name == _FILE or _BLOCK.fullmatch(name) is not None
