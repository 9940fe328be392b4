"""Wide statistics on disk while nobody reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from gpprune.prune.model.streamed.shelf import Shelf


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
