"""The blocks that a streamed pruning has finished, in a directory, so that a killed one goes on."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.files import forget, remove, whole_file, whole_folder, whole_name
from gpprune.prune.model.streamed.pages import Source
from gpprune.prune.model.streamed.parts import Parts
from gpprune.prune.model.streamed.shards import Shards

_RECORD = "blocks.json"
CHECKPOINT = "checkpoint"  # the folder of the weights
ASIDE = "configuration"  # the folder of what is written beside them in the end
_LOCK = ".lock"  # held as long as a process writes here
_STATES = re.compile(r"states-\d+")


def check_blocks(folder: Path) -> None:
    """See that finished blocks may be kept in a directory: it holds others, or is to be made.

    Raises:
        UsageError: something else lies there.
    """
    whole = folder.is_dir() and not folder.is_symlink()
    if os.path.lexists(folder) and not (whole and all(map(_is_ours, folder.iterdir()))):
        raise UsageError(
            f"{str(folder)!r}, where finished blocks are kept, is something else: move it away, or "
            "choose another --out"
        )


def has_blocks(folder: Path) -> bool:
    """Whether finished blocks lie in a directory."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        return int(record["finished"]) > 0 and (folder / CHECKPOINT).is_dir()
    return False


def forget_blocks(folder: Path) -> None:
    """Remove what is kept in a directory, and the directory if nothing else is there."""
    forget(folder, _is_ours, first=_RECORD)


def _is_ours(path: Path) -> bool:
    name = whole_name(path.name)
    return name in (_RECORD, CHECKPOINT, ASIDE, _LOCK) or _STATES.fullmatch(name) is not None


def _locked(folder: Path) -> TextIOWrapper:
    """The lock of a directory, held; it is let go with the object.

    Raises:
        UsageError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / _LOCK))
    except OSError:  # held, or removed by the one that held it
        same = False
    if not same:
        lock.close()
        raise UsageError(
            f"another process writes to {str(folder)!r}: wait for it, or choose another --out"
        )
    return lock


class Finished:
    """The weights of finished blocks, how many there are, and what the last of them handed on.

    The record is written last, so that a kill leaves the block before, whole.

    Args:
        folder: made if it is missing. A process that writes there holds it locked.
        identity: what tells this pruning from others, as JSON has it.
        shards: the files that the weights go to, in `CHECKPOINT` of the folder.
        parts: the names of the model's parts.
        device: where weights that are read back come to lie.

    Raises:
        UsageError: another pruning is kept there, or another process writes there.
        GppruneError: it is damaged, or there is no room.
    """

    finished: int

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        shards: Shards,
        parts: list[str],
        device: torch.device,
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._shards = shards
        self._parts = parts
        self._device = device
        self._back: Parts | None = None
        with self._room():
            self._lock = _locked(folder)
        try:
            self.finished, self._states_kept = self._read()
            if not self.finished:
                with self._room():
                    self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Lay the files out anew: what is there may be of another model, or half made."""
        remove(self._shards.folder)
        try:
            self._shards.begin()
            self._note(0, 0)
        except BaseException:
            forget_blocks(self._folder)
            raise

    def _note(self, finished: int, states: int) -> None:
        record = {"identity": self._identity, "finished": finished, "states": states}
        whole_file(self._folder / _RECORD, json.dumps(record, indent=2) + "\n")
        self.finished, self._states_kept = finished, states

    def _read(self) -> tuple[int, int]:
        """How many blocks are finished, and of how many sequences states are kept."""
        path = self._folder / _RECORD
        if not path.exists() or not self._shards.folder.exists():
            return 0, 0
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            identity = record["identity"]
            finished, states = int(record["finished"]), int(record["states"])
            if finished and identity == json.loads(json.dumps(self._identity)):
                self._shards.check()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        if not finished:
            return 0, 0
        if identity != json.loads(json.dumps(self._identity)):
            raise UsageError(
                f"{str(self._folder)!r} holds the blocks of another recipe, model or calibration "
                "text: remove it, or choose another --out"
            )
        return finished, states

    def _damaged(self, error: Exception) -> GppruneError:
        return GppruneError(
            f"the blocks kept in {str(self._folder)!r} are damaged ({error}): remove it"
        )

    def close(self) -> None:
        """Let the directory go: another process may write there."""
        self._lock.close()

    @property
    def written(self) -> Source:
        """What reads the weights back."""
        if self._back is None:
            try:
                self._back = Parts(
                    self._shards.model, self._shards.files, self._parts, self._device
                )
            except (OSError, ValueError, SafetensorError) as error:
                raise self._damaged(error) from error
        return self._back

    def states(self) -> Iterator[Tensor]:
        """The hidden states that the last finished block handed on, sequence after sequence."""
        folder = self._states(self.finished)
        try:
            for place in range(self._states_kept):
                path = folder / f"{place}.safetensors"
                yield load_file(path)["state"].clone().to(self._device)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise self._damaged(error) from error

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write parameters and buffers, by their names in the model."""
        with self._room():
            self._shards.put(tensors)

    def finish(self, blocks: int, states: Iterable[Tensor]) -> None:
        """Note that so many blocks are there, and the hidden states that the last handed on."""
        with self._room():
            if (target := self._states(blocks)).exists():  # of a process that was killed just then
                remove(target)
            with whole_folder(target) as folder:
                count = 0
                for state in states:
                    save_file({"state": state.cpu().contiguous()}, folder / f"{count}.safetensors")
                    count += 1
            self._note(blocks, count)
            for path in self._folder.iterdir():
                if _STATES.fullmatch(whole_name(path.name)) and path != self._states(blocks):
                    remove(path)

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise GppruneError(
                f"finished blocks cannot be written to {str(self._folder)!r} ({reason}): make room"
            ) from error

    def _states(self, blocks: int) -> Path:
        return self._folder / f"states-{blocks}"
