"""Workers: processes that judge candidates beside one another and share all that is only read.

A worker is a fork of the search's process, so that a model's weights and statistics lie in memory
once; what a worker writes, such as the copy that it prunes, is its own. The search's process judges
nothing: a worker that dies is replaced by a fresh fork of it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.fidelity import race
from gpprune.gp.fitness import Fitness
from gpprune.gp.judging import Terms
from gpprune.gp.outcome import Candidate, Verdict
from gpprune.gp.settings import SearchSettings
from gpprune.memory import out_of_memory
from gpprune.primitives import Language, parse

_TRIES = 2
_GRACE = 1.0  # seconds past its limit, after which a candidate does not end by itself
_LOOK = 1.0  # seconds after which a worker looks whether its search still lives
_NO_MEMORY = 71  # exit codes of workers
_BROKEN = 70


class Workers:
    """A `Judge` of several processes."""

    def __init__(
        self,
        fitness: Fitness,
        language: Language,
        settings: SearchSettings,
        count: int,
        begin: Callable[[], None] | None = None,
    ) -> None:
        """Start the processes.

        Args:
            fitness: judges; each worker has it as it is now.
            language: what candidates are of.
            settings: `first_rung`, `race_z` and `candidate_time_limit` of it.
            count: how many processes.
            begin: called in each worker before its first candidate, to divide threads, say.

        Raises:
            UsageError: fewer than one, or this system cannot fork.
        """
        if count < 1:
            raise UsageError(f"{count} workers judge nothing: give --workers 1 or more")
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError("this system cannot fork processes: leave --workers out")
        self._made_of = (fitness, language, settings, begin)
        self._limit = settings.candidate_time_limit
        self._workers = [self._start() for _ in range(count)]

    def judge(
        self, candidates: Sequence[Candidate], terms: Terms, go_on: Callable[[], bool]
    ) -> Iterator[Verdict]:
        """See `Judge`.

        A candidate whose worker dies or runs out of memory has a second try with another one, and
        fails with that. One that runs past its limit is stopped with its worker.

        Raises:
            UsageError: the fitness breaks its protocol.
        """
        waiting, tries = deque(range(len(candidates))), Counter[int]()
        done: dict[int, Verdict] = {}
        told = 0
        while told < len(candidates):
            for worker in [*self._workers]:
                if waiting and worker.at is None:
                    if not go_on():
                        waiting.clear()
                        break
                    if not worker.process.is_alive():  # it died of no candidate
                        worker = self._replaced(worker)
                    worker.give(waiting.popleft(), candidates, terms)
            busy = [worker for worker in self._workers if worker.at is not None]
            if not busy:
                return
            for worker in self._heard(busy):
                at, verdict = worker.take()
                if verdict is None and tries[at] + 1 < _TRIES and not worker.late:
                    tries[at] += 1
                    waiting.appendleft(at)
                else:
                    done[at] = verdict or worker.failure()
                if verdict is None:
                    self._replaced(worker)
            while told in done:
                yield done.pop(told)
                told += 1

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.stop()

    def _start(self) -> _Worker:
        try:
            return _Worker(*self._made_of)
        except OSError as error:
            raise GppruneError(f"cannot start a worker: {error}; try fewer") from error

    def _replaced(self, worker: _Worker) -> _Worker:
        """A fresh worker in the place of one that is no more."""
        worker.stop()
        fresh = self._start()
        self._workers[self._workers.index(worker)] = fresh
        return fresh

    def _heard(self, busy: list[_Worker]) -> list[_Worker]:
        """Workers that have answered, died, or run past their limit."""
        patience = None
        if self._limit is not None:
            ends = min(worker.since for worker in busy) + self._limit + _GRACE
            patience = max(0.0, ends - time.monotonic())
        wait([worker.connection for worker in busy], patience)
        for worker in busy:
            worker.stop_if_late()
        return [worker for worker in busy if worker.late or worker.connection.poll()]


class _Worker:
    """One process, as the search sees it."""

    def __init__(
        self,
        fitness: Fitness,
        language: Language,
        settings: SearchSettings,
        begin: Callable[[], None] | None,
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, own = context.Pipe()
        given = (own, fitness, language, settings, begin)
        self.process: BaseProcess = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        own.close()
        self.at: int | None = None
        self.since = 0.0
        self.late = False
        self.limit = settings.candidate_time_limit

    def give(self, at: int, candidates: Sequence[Candidate], terms: Terms) -> None:
        """Have a candidate judged; a worker that is dead is noticed when it is asked."""
        self.at, self.since = at, time.monotonic()
        with suppress(OSError):
            self.connection.send(_Task(candidates[at].text, terms))

    def take(self) -> tuple[int, Verdict | None]:
        """Which candidate it had, and the verdict; None: there is none to come."""
        at, self.at = self.at, None
        if at is None:
            raise RuntimeError("a worker that was given nothing has no verdict")
        try:
            answer = None if self.late else self.connection.recv()
        except (EOFError, OSError):
            answer = None
        if isinstance(answer, str):
            raise UsageError(answer)
        if answer is None:
            self.stop()
        return at, answer

    def stop_if_late(self) -> None:
        """Stop it if its candidate runs past the limit and has not been answered."""
        if self.limit is None or self.connection.poll():
            return
        if time.monotonic() - self.since > self.limit + _GRACE:
            self.late = True
            self.stop()

    def stop(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join()
        self.connection.close()

    def failure(self) -> Verdict:
        """What is recorded of a candidate that has no verdict."""
        code = self.process.exitcode or 0
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        reason = f"its worker died twice, in the end {how}"
        if self.late:
            reason = f"ran past {self.limit:g} s and was stopped"
        elif code == _NO_MEMORY:
            reason = "ran out of memory twice"
        seconds = time.monotonic() - self.since
        return Verdict(fitness=math.inf, losses=(), full=False, reason=reason, seconds=seconds)


@dataclass(frozen=True)
class _Task:
    """What a worker is given."""

    text: str
    terms: Terms


def _serve(
    connection: Connection[Any, Any],
    fitness: Fitness,
    language: Language,
    settings: SearchSettings,
    begin: Callable[[], None] | None,
) -> None:
    """A worker's life: in a thread of its own, since OpenMP's threads do not survive a fork.

    The thread that forked believes that it still has them, and waits for them for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the search's process ends its workers
    search = os.getppid()

    def judge() -> None:
        if begin is not None:
            begin()
        while True:
            while not connection.poll(_LOOK):
                if os.getppid() != search:
                    os._exit(0)
            task = connection.recv()
            formula = parse(task.text, language)
            try:
                verdict = race(fitness, formula, settings, task.terms.reference, task.terms.screen)
            except UsageError as error:
                connection.send(str(error))
            else:
                connection.send(verdict)

    def live() -> None:
        try:
            judge()
        except (EOFError, OSError):  # the search has ended
            os._exit(0)
        except BaseException as error:  # nothing but the exit code gets out of here
            os._exit(_NO_MEMORY if out_of_memory(error) else _BROKEN)

    thread = Thread(target=live)
    thread.start()
    thread.join()
