"""Tensors kept on disk while nobody reads them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from tempfile import gettempdir

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpprune.errors import GppruneError
from gpprune.scratch import Scratch

_IN_MEMORY = 1 << 30  # bytes of tensors in a row; what is more lies on disk


class Shelf:
    """Tensors by key, in a temporary directory.

    The directory goes with :meth:`close`, with the object, and at the end of the process.

    Raises:
        GppruneError: from `put`, when the temporary directory cannot be written.
    """

    def __init__(self) -> None:
        self._filed: dict[Hashable, tuple[Path, torch.device]] = {}
        self._scratch: Scratch | None = None
        self._written = 0

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor."""
        try:
            if self._scratch is None:
                self._scratch = Scratch()
            path = self._scratch.path / f"{self._written}.safetensors"
            self._written += 1
            save_file({"tensor": tensor.detach().cpu().contiguous()}, path)
        except (OSError, SafetensorError) as error:
            raise _unwritten(error) from error
        self._filed[key] = (path, tensor.device)

    def get(self, key: Hashable) -> Tensor:
        """The tensor of a key, on the device that it was on."""
        path, device = self._filed[key]
        found: Tensor = load_file(path)["tensor"]
        return found.to(device)

    def take(self, key: Hashable) -> Tensor:
        """The tensor of a key, which is not kept any longer."""
        found = self.get(key)
        if found.device.type == "cpu":
            found = found.clone()  # it may be the file itself, mapped into memory
        self.drop(key)
        return found

    def drop(self, key: Hashable) -> None:
        """Keep the tensor of a key no longer."""
        self._filed.pop(key)[0].unlink()

    def close(self) -> None:
        """Let everything go."""
        self._filed.clear()
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unwritten(error: Exception) -> GppruneError:
    return GppruneError(
        f"the temporary directory {gettempdir()} cannot hold what calibration puts aside "
        f"({error}): make room there, or set TMPDIR to a directory that has it"
    )


class Row:
    """Tensors in a row: the first gigabyte in memory, what is more on disk."""

    def __init__(self) -> None:
        self._held: list[Tensor | None] = []  # None: on the shelf
        self._shelf = Shelf()
        self._bytes = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        """All of them, one after another."""
        return map(self.__getitem__, range(len(self)))

    def append(self, tensor: Tensor) -> None:
        """Put one more at the end."""
        self._held.append(None)
        if self._bytes < _IN_MEMORY:
            self._bytes += tensor.numel() * tensor.element_size()
            self._held[-1] = tensor
        else:
            self._shelf.put(len(self) - 1, tensor)

    def __getitem__(self, place: int) -> Tensor:
        """The tensor at a place."""
        held = self._held[place]
        return self._shelf.get(place) if held is None else held

    def __setitem__(self, place: int, tensor: Tensor) -> None:
        """Put another tensor of the same size at a place."""
        if self._held[place] is None:
            self._shelf.drop(place)
            self._shelf.put(place, tensor)
        else:
            self._held[place] = tensor
