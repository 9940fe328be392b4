"""Stands in for `gpprune.primitives.STATISTICS` until that table is there."""

from __future__ import annotations

from dataclasses import dataclass

from gpprune.primitives import Elements, Inputs, Outputs, ValueType
from gpprune.tables import Table


@dataclass(frozen=True)
class Statistic:
    """A name and a type."""

    name: str
    type: ValueType | None


STATISTICS = Table(
    "statistic",
    (
        Statistic("X", Inputs),
        Statistic("Y", Outputs),
        Statistic("G", Elements),
        Statistic("D", Inputs),
    ),
)
