"""How long work says where it is: one type, handed to whatever takes long."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as `progress(label, done, total)`; a label is done when `done` reaches `total`."""


def silent(label: str, done: int, total: int) -> None:
    """The progress of who does not want to hear of it.

    Args:
        label: what is being done.
        done: how much of it is.
        total: how much there is.
    """
