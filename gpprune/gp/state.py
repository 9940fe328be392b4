"""Where a search stands between two generations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class State:
    """What a search carries from one generation to the next, beside the archive.

    Attributes:
        generation: the number of the generation to ask for.
        population: keys, best first.
        archive_hits: how many draws the archive had already answered.
    """

    generation: int = 0
    population: tuple[str, ...] = ()
    archive_hits: int = 0
