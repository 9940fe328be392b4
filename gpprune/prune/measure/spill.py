"""Tensors kept on disk while nobody reads them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpprune.errors import GppruneError
from gpprune.scratch import Scratch


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


class Library:
    """Wide statistics of all layers on disk; of each statistic the one read last is in memory.

    So layers that share a tensor are handed the same object when they are asked one after another.
    """

    def __init__(self) -> None:
        self._shelf = Shelf()
        self._kept = 0
        self._last: dict[str, tuple[int, Tensor]] = {}

    def put(self, tensor: Tensor) -> int:
        """Keep a tensor, and return its number."""
        self._shelf.put(self._kept, tensor)
        self._kept += 1
        return self._kept - 1

    def read(self, statistic: str, number: int) -> Tensor:
        """The tensor of a number, of a statistic."""
        last = self._last.get(statistic)
        if last is None or last[0] != number:
            self._last.pop(statistic, None)  # before the next is read, so that one is in memory
            last = self._last[statistic] = (number, self._shelf.get(number))
        return last[1]

    def close(self) -> None:
        """Let everything go."""
        self._last.clear()
        self._shelf.close()


@dataclass(frozen=True, eq=False)
class Kept(Mapping[str, Tensor]):
    """A layer's statistics by name, of which the wide ones are read when they are asked for."""

    own: Mapping[str, Tensor]
    numbers: Mapping[str, int]
    library: Library

    def __getitem__(self, name: str) -> Tensor:
        if name in self.numbers:
            return self.library.read(name, self.numbers[name])
        return self.own[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        yield from self.numbers

    def __len__(self) -> int:
        return len(self.own) + len(self.numbers)
