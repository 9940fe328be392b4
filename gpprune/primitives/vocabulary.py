"""The tables whose entries formula text calls by name, and several of them as one."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from gpprune.errors import UsageError
from gpprune.primitives.nodes import word
from gpprune.tables import Entry, Table

Item = TypeVar("Item")

_WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")


class Vocabulary(Table[Entry]):
    """Terminals or primitives by name; no name is in two of these tables.

    The part of a name behind its last dot is the word of formula text.
    """

    _all: ClassVar[list[Vocabulary[Any]]] = []

    def __init__(self, what: str, *entries: Entry) -> None:
        super().__init__(what, entries)
        self._all.append(self)

    def add(self, entry: Entry) -> Entry:
        """Put an entry in, and return it.

        Raises:
            UsageError: its name is no word that formula text can hold, or is taken.
        """
        name = word(entry.name)
        if not _WORD.fullmatch(name) or keyword.iskeyword(name):
            raise UsageError(
                f"a {self.what} cannot be called {entry.name!r}: use letters, digits and "
                "underscores, and no word of Python's"
            )
        for other in self._all:
            if other is not self and entry.name in other:
                raise UsageError(
                    f"there is a {other.what} {entry.name!r} already: give another name"
                )
        return super().add(entry)


def _every(_: Any) -> bool:
    return True


class Joined(Mapping[str, Item]):
    """Several tables as one that follows them: what is added to one of them is in it."""

    def __init__(self, *tables: Mapping[str, Item], keep: Callable[[Item], bool] = _every) -> None:
        """Join tables whose names differ; only the entries that `keep` says yes to are in it."""
        self._tables = tables
        self._keep = keep

    @property
    def revision(self) -> tuple[object, ...]:
        """Equal as long as no table has changed."""
        return tuple(revision_of(table) for table in self._tables)

    def __getitem__(self, name: str) -> Item:
        for table in self._tables:
            if name in table and self._keep(table[name]):
                return table[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        for table in self._tables:
            yield from (name for name, entry in table.items() if self._keep(entry))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def revision_of(table: Mapping[str, Any]) -> object:
    """What says whether a table is as it was; a mapping that is no table does not change."""
    return getattr(table, "revision", 0)
