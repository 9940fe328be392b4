"""The errors that reach a user: one sentence that names the value and the way out."""

from __future__ import annotations


class GppruneError(Exception):
    """A failure that a user can act on; the command line prints it without a traceback."""

    exit_code: int = 1


class UsageError(GppruneError, ValueError):
    """A wrong argument: a flag, a formula, a specification that does not exist."""

    exit_code: int = 2


class Unfit(GppruneError):
    """A candidate formula that cannot be judged; its message is the recorded reason."""


class DampingWarning(UserWarning):
    """A curvature matrix was damped by more than was asked for, without which it has no inverse."""
