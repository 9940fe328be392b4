"""Workers that are forks of the search's process and share all that is only read.

A model's weights and statistics lie in memory once; what a worker writes, such as the copy that it
prunes, is its own. The search's process judges nothing: a worker that dies is replaced by a fresh
fork of it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, cast

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.fitness import Fitness
from gpprune.gp.judging import Judge
from gpprune.gp.settings import SearchSettings
from gpprune.gp.workers.pool import Answer, Order, Pool, Worker, answer, check_count
from gpprune.primitives import Language

_LOOK = 1.0  # seconds after which a worker looks whether its search still lives
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BROKEN = 70  # the exit code of a worker that cannot go on


@dataclass(frozen=True)
class Forks:
    """A `Crew` of processes on this machine.

    Attributes:
        count: how many.
        begin: called in each before its first candidate, to divide threads, say.
    """

    count: int
    begin: Callable[[], None] | None = None

    def hire(self, fitness: Fitness, language: Language, settings: SearchSettings) -> Judge:
        """See `Crew`; each worker has the fitness as it is now."""
        check_count(self.count)
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UsageError("this system cannot fork processes: leave --workers out")

        def fresh() -> _Fork:
            try:
                return _Fork(fitness, language, settings, self.begin)
            except OSError as error:
                raise GppruneError(f"cannot start a worker: {error}; try fewer") from error

        workers: list[_Fork] = []
        try:
            while len(workers) < self.count:
                workers.append(fresh())
        except BaseException:
            for worker in workers:
                worker.stop()
            raise
        return Pool(workers, fresh, _wait)


def _wait(busy: Sequence[Worker], patience: float | None) -> None:
    wait([worker.connection for worker in cast(Sequence[_Fork], busy)], patience)


class _Fork(Worker):
    """One process, as the search sees it."""

    def __init__(
        self,
        fitness: Fitness,
        language: Language,
        settings: SearchSettings,
        begin: Callable[[], None] | None,
    ) -> None:
        super().__init__(settings.candidate_time_limit)
        context = multiprocessing.get_context("fork")
        self.connection, own = context.Pipe()
        given = (own, fitness, language, settings, begin)
        self.process: BaseProcess = context.Process(target=_serve, args=given, daemon=True)
        # a signal between the fork and `_serve` would end in the search's own handler, in a worker
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        own.close()

    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, order: Order) -> None:
        with suppress(OSError):
            self.connection.send(order)

    def answered(self) -> bool:
        return self.connection.poll()

    def receive(self) -> Answer | None:
        try:
            return cast(Answer, self.connection.recv())
        except (EOFError, OSError):
            return None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()

    def end(self) -> str:
        code = self.process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with exit code {code}"


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
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    search = os.getppid()

    def judge() -> None:
        if begin is not None:
            begin()
        while True:
            while not connection.poll(_LOOK):
                if os.getppid() != search:
                    os._exit(0)
            connection.send(answer(connection.recv(), fitness, language, settings))

    def live() -> None:
        try:
            judge()
        except (EOFError, OSError):  # the search has ended
            os._exit(0)
        except BaseException:  # nothing but the exit code gets out of here
            os._exit(_BROKEN)

    thread = Thread(target=live)
    thread.start()
    thread.join()
