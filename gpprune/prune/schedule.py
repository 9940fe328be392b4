"""How far each of several shots goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from gpprune.tables import Table


@dataclass(frozen=True)
class Schedule:
    """A schedule: an entry of `SCHEDULES`.

    Attributes:
        name: what recipes and the command line call it.
        about: what it does in a line.
        part: from the share of the shots that are done, in ``[0, 1]``, to the share of the zeros
            that are to be there: increasing, 1 at 1.
    """

    name: str
    about: str
    part: Callable[[float], float]


SCHEDULES: Table[Schedule] = Table(
    "schedule of shots",
    (
        Schedule("linear", "every shot takes as many weights (LLM Surgeon's)", lambda done: done),
        Schedule(
            "cosine",
            "the first and the last shots take fewer weights than those between",
            lambda done: (1 - math.cos(math.pi * done)) / 2,
        ),
    ),
)
"""How the zeros of a recipe of several shots grow."""
