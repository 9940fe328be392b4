"""How far each of several shots goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from gpprune.errors import UsageError
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

    def parts(self, shots: int) -> list[float]:
        """The share of the zeros that are there after each of several shots, the last 1.

        Raises:
            UsageError: a share lies outside (0, 1], is less than the one before, or the last is
                not 1.
        """
        parts = [self.part(done / shots) for done in range(1, shots + 1)]
        if not math.isclose(parts[-1], 1.0, abs_tol=1e-9):
            raise UsageError(
                f"the schedule {self.name!r} ends at a share of {parts[-1]:g} of the zeros: it is "
                "to be 1 at 1"
            )
        parts[-1] = 1.0
        for before, after in pairwise((0.0, *parts)):
            if not (0 < after <= 1 and before <= after):
                raise UsageError(
                    f"the schedule {self.name!r} goes from a share of {before:g} of the zeros to "
                    f"{after:g} in {shots} shots: shares lie in (0, 1] and never fall"
                )
        return parts


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
