"""Tables of entries by name: each kind of thing that can be added has one, and only one.

Statistics, primitives, patterns, weight updates, losses, text and model sources are entries.
Whatever needs to know of them (the parser, DEAP's set, calibration, the command line) asks the
table, so that an entry that was added a moment ago is known everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

from gpprune.errors import UsageError


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """What it is called."""


Entry = TypeVar("Entry", bound=Named)


class Table(Mapping[str, Entry]):
    """Entries of one kind by name, in the order in which they were added.

    Attributes:
        what: what an entry is called in errors, as in "there is no weight update 'x'".
        revision: how often the table has changed: what is derived from it is good for one
            revision.
    """

    def __init__(self, what: str, entries: Iterable[Entry] = ()) -> None:
        self.what = what
        self.revision = 0
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            self.add(entry)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> Entry:
        """Put an entry in, and return it.

        Raises:
            UsageError: there is one of that name.
        """
        if entry.name in self._entries:
            raise UsageError(f"there is a {self.what} {entry.name!r} already: give another name")
        self._entries[entry.name] = entry
        self.revision += 1
        return entry

    def remove(self, name: str) -> Entry:
        """Take an entry out, and return it.

        Raises:
            UsageError: there is none of that name.
        """
        entry = Table.find(self, name)  # a name that is made up of others' is none of these
        del self._entries[name]
        self.revision += 1
        return entry

    @contextmanager
    def including(self, *entries: Entry) -> Iterator[None]:
        """With these entries inside the context, and without them after it."""
        added: list[str] = []
        try:
            for entry in entries:
                added.append(self.add(entry).name)
            yield
        finally:
            for name in added:
                self.remove(name)

    def find(self, name: str) -> Entry:
        """The entry of a name.

        Raises:
            UsageError: there is none; the message says which there are.
        """
        if name not in self._entries:
            raise UsageError(f"there is no {self.what} {name!r}: choose from {', '.join(self)}")
        return self._entries[name]
