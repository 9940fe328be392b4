"""How fast a search judges, and what it has left to do, by the events that it sends."""

from __future__ import annotations

from gpprune.gp import SearchEvent, SearchSettings


class Pace:
    """The pace of one call of a search."""

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self._first: SearchEvent | None = None

    def see(self, event: SearchEvent) -> None:
        """Take note of the next event."""
        self._first = self._first or event

    def hourly(self, event: SearchEvent) -> float:
        """Candidates an hour, of this call."""
        return 3600 * self._judged(event) / event.seconds if event.seconds > 0 else 0.0

    def seconds_left(self, event: SearchEvent) -> float | None:
        """Until the last generation or the time limit; None: nothing was judged yet."""
        to_come = (event.generations - event.generation) * self._settings.offspring
        candidates = event.total - event.index + to_come
        judged, limit = self._judged(event), self._settings.time_limit
        if judged == 0:
            return limit
        left = candidates * event.seconds / judged
        return left if limit is None else min(left, max(0.0, limit - event.seconds))

    def _judged(self, event: SearchEvent) -> int:
        return event.evaluated - (self._first.evaluated if self._first else 0)
