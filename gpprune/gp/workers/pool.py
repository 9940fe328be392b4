"""A pool of workers: who is given what, who tries again, what is recorded of who is lost."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from gpprune.errors import UsageError
from gpprune.gp.fitness import Fitness
from gpprune.gp.judging import Judge, Tasks, Terms
from gpprune.gp.outcome import Verdict
from gpprune.gp.settings import SearchSettings
from gpprune.memory import out_of_memory
from gpprune.primitives import Language, parse

_TRIES = 2
_GRACE = 1.0  # seconds past its limit, after which a candidate does not end by itself


class Crew(Protocol):
    """What makes the workers of a search."""

    def hire(self, fitness: Fitness, language: Language, settings: SearchSettings) -> Judge:
        """Start them.

        Raises:
            UsageError: they cannot be had here.
            GppruneError: they do not start.
        """
        ...


def check_count(count: int | None) -> None:
    """See that a number of workers can judge; None: as many as there is room for.

    Raises:
        UsageError: it is less than one.
    """
    if count is not None and count < 1:
        raise UsageError(f"{count} workers judge nothing: give --workers 1 or more")


@dataclass(frozen=True)
class Hired:
    """A crew that was started before, to fail before anything else is begun."""

    judge: Judge

    def hire(self, fitness: Fitness, language: Language, settings: SearchSettings) -> Judge:
        """See `Crew`."""
        return self.judge


@dataclass(frozen=True)
class Order:
    """What a worker is given: a formula, and what it is judged by."""

    text: str
    terms: Terms


@dataclass(frozen=True)
class Refused:
    """A worker's answer where the fitness breaks its protocol."""

    message: str


@dataclass(frozen=True)
class NoMemory:
    """A worker's last answer, where memory did not hold a candidate."""


Answer = Verdict | Refused | NoMemory


def answer(order: Order, fitness: Fitness, language: Language, settings: SearchSettings) -> Answer:
    """What a worker does with an order, in its own process."""
    try:
        formula = parse(order.text, language)
        return order.terms.verdict(fitness, formula, settings)
    except UsageError as error:
        return Refused(str(error))
    except Exception as error:
        if out_of_memory(error):
            return NoMemory()
        raise


class Worker(ABC):
    """One worker, as the search sees it.

    Attributes:
        at: the number of the candidate that it judges; None: it is idle.
        since: when it was given that, by the monotonic clock.
        late: whether it was stopped because that took longer than `limit` seconds.
        short: whether memory did not hold that.
    """

    def __init__(self, limit: float | None) -> None:
        self.at: int | None = None
        self.since = 0.0
        self.late = self.short = False
        self.limit = limit

    @abstractmethod
    def alive(self) -> bool:
        """Whether an idle worker can be given an order."""

    @abstractmethod
    def send(self, order: Order) -> None:
        """Have a formula judged; a worker that is dead is noticed when it is asked."""

    @abstractmethod
    def answered(self) -> bool:
        """Whether it has an answer, or will never have one."""

    @abstractmethod
    def receive(self) -> Answer | None:
        """Its answer; None: it died."""

    @abstractmethod
    def stop(self) -> None:
        """End it at once."""

    @abstractmethod
    def end(self) -> str:
        """How it died, such as "by signal 9"."""

    def give(self, at: int, order: Order) -> None:
        """Have the candidate of a number judged."""
        self.at, self.since = at, time.monotonic()
        self.send(order)

    def take(self) -> tuple[int, Verdict | None]:
        """Which candidate it had, and the verdict; None: there is none to come, and it is stopped.

        Raises:
            UsageError: the fitness breaks its protocol.
        """
        at, self.at = self.at, None
        if at is None:
            raise RuntimeError("a worker that was given nothing has no verdict")
        found = None if self.late else self.receive()
        if isinstance(found, Refused):
            raise UsageError(found.message)
        if isinstance(found, Verdict):
            return at, found
        self.short = isinstance(found, NoMemory)
        self.stop()
        return at, None

    def stop_if_late(self) -> None:
        """Stop it if its candidate runs past the limit and has not been answered."""
        if self.limit is None or self.answered():
            return
        if time.monotonic() - self.since > self.limit + _GRACE:
            self.late = True
            self.stop()

    def failure(self) -> Verdict:
        """What is recorded of a candidate that has no verdict."""
        reason = f"its worker died twice, in the end {self.end()}"
        if self.late:
            reason = f"ran past {self.limit:g} s and was stopped"
        elif self.short:
            reason = "ran out of memory twice"
        seconds = time.monotonic() - self.since
        return Verdict(fitness=math.inf, losses=(), full=False, reason=reason, seconds=seconds)


class _Orders:
    """The orders of a pool by their numbers, and who tries again."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._open: dict[int, Order] = {}
        self._again: deque[int] = deque()
        self._tries = Counter[int]()
        self._count = 0

    def next(self, go_on: Callable[[], bool]) -> tuple[int, Order] | None:
        """One to give away, a new one while that may be; None: there is none at the moment."""
        if self._again:
            at = self._again.popleft()
        else:
            task = next(self._tasks, None) if go_on() else None
            if task is None:
                return None
            at, self._count = self._count, self._count + 1
            self._open[at] = Order(task.candidate.text, task.terms)
        self._tries[at] += 1
        return at, self._open[at]

    def again(self, at: int) -> bool:
        """Have another worker try, if that may be."""
        if self._tries[at] == _TRIES:
            return False
        self._again.appendleft(at)
        return True

    def settled(self, at: int) -> None:
        """Forget one that has its verdict."""
        del self._open[at], self._tries[at]


class Pool:
    """A `Judge` of several workers."""

    def __init__(
        self,
        workers: Sequence[Worker],
        fresh: Callable[[], Worker],
        wait: Callable[[Sequence[Worker], float | None], None],
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """Take workers over.

        Args:
            workers: those that have started.
            fresh: starts one more, in the place of one that died.
            wait: returns once one of several busy workers has answered or died, or after so many
                seconds; None: however long that takes.
            close: called when all have ended.
        """
        self._workers = [*workers]
        self._fresh, self._wait, self._close = fresh, wait, close

    def judge(self, tasks: Tasks, go_on: Callable[[], bool]) -> Iterator[Verdict]:
        """See `Judge`.

        A candidate whose worker dies or runs out of memory has a second try with another one, and
        fails with that. One that runs past its limit is stopped with its worker.

        Raises:
            UsageError: the fitness breaks its protocol.
        """
        orders = _Orders(tasks)
        done: dict[int, Verdict] = {}
        told = 0
        while True:
            for worker in [*self._workers]:
                if worker.at is None and (found := orders.next(go_on)) is not None:
                    if not worker.alive():  # it died of no candidate
                        worker = self._replaced(worker)
                    worker.give(*found)
            busy = [worker for worker in self._workers if worker.at is not None]
            if not busy:
                return
            for worker in self._heard(busy):
                at, verdict = worker.take()
                if verdict is not None:
                    done[at] = verdict
                elif worker.late or not orders.again(at):
                    done[at] = worker.failure()
                if verdict is None:
                    self._replaced(worker)
            while told in done:
                orders.settled(told)
                yield done.pop(told)
                told += 1

    def close(self) -> None:
        """End all workers; once they have ended, nothing."""
        for worker in self._workers:
            with suppress(Exception):  # one that cannot be reached must not keep the others
                worker.stop()
        self._workers = []
        self._close()

    def _replaced(self, worker: Worker) -> Worker:
        """A fresh worker in the place of one that is no more."""
        worker.stop()
        fresh = self._fresh()
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def _heard(self, busy: list[Worker]) -> list[Worker]:
        """Workers that have answered, died, or run past their limit."""
        ends = [worker.since + worker.limit for worker in busy if worker.limit is not None]
        patience = max(0.0, min(ends) + _GRACE - time.monotonic()) if ends else None
        self._wait(busy, patience)
        for worker in busy:
            worker.stop_if_late()
        return [worker for worker in busy if worker.late or worker.answered()]
