"""Workers that are actors of a Ray cluster: each makes its fitness once, where it runs.

The search's process owns the run directory; a worker is told formulas and answers with losses.
Ray carries what workers are made of and what they answer; no file is read for it.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from gpprune.errors import GppruneError, UsageError
from gpprune.gp.fidelity import clipped
from gpprune.gp.fitness import Fitness
from gpprune.gp.judging import Judge
from gpprune.gp.settings import SearchSettings
from gpprune.gp.workers.pool import Answer, NoMemory, Order, Pool, Worker, answer, check_count
from gpprune.primitives import Language

_PATIENCE = 900.0  # seconds that a worker may take to find its place and to make its fitness
_KNOCK = 5.0  # seconds that a machine may take to answer

Build = Callable[[Any, int], tuple[Fitness, Language]]
"""Makes a fitness of what is given to all workers, on so many CPU cores; says its language too."""


@dataclass(frozen=True)
class RayActors:
    """A `Crew` of actors, which Ray places by the cores and GPUs that they need.

    Attributes:
        address: what `ray.init` takes: "auto", "HOST:PORT", or "local" for a cluster of this
            machine alone that ends with the search.
        build: makes what a worker judges by. Ray must be able to send it: a function of a module
            that is installed on every node.
        given: what it makes it of, sent once to each node.
        count: how many actors; None: one for each GPU, or each node where none is asked for.
        gpus: how many GPUs each needs.
    """

    address: str
    build: Build
    given: Any = None
    count: int | None = None
    gpus: int = 0

    def hire(self, fitness: Fitness, language: Language, settings: SearchSettings) -> Judge:
        """See `Crew`; the fitness and the language that are given stay with the search.

        Raises:
            UsageError: Ray is not installed, no cluster answers, or it has no place for so many.
            GppruneError: a worker does not start.
        """
        check_count(self.count)
        ray = _ray()
        leave = disconnect if connect(self.address) else _stay

        def fresh() -> _Remote:
            return _Remote(ray, kind.remote(*told), settings.candidate_time_limit)

        def started() -> _Remote:
            worker = fresh()
            try:
                worker.check()
            except BaseException:
                worker.stop()
                raise
            return worker

        def wait(busy: Sequence[Worker], patience: float | None) -> None:
            answers = [worker.answer for worker in cast(Sequence[_Remote], busy)]
            _asked(ray.wait, answers, timeout=patience)

        with ExitStack() as undo:
            undo.callback(leave)
            count, cores = self._places(ray)
            kind = ray.remote(_Actor).options(num_cpus=cores, num_gpus=self.gpus)
            told = (self.build, ray.put(self.given), cores, settings)
            workers = [fresh() for _ in range(count)]
            pool = Pool(workers, started, wait, leave)
            undo.pop_all()
            undo.callback(pool.close)
            for worker in workers:
                worker.check()
            undo.pop_all()
        return pool

    def _places(self, ray: ModuleType) -> tuple[int, int]:
        """How many workers, and how many cores each: as many as all of them have room for."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        gpus = [int(node.get("GPU", 0)) // self.gpus if self.gpus else 0 for node in nodes]
        count = self.count or (sum(gpus) if self.gpus else len([n for n in cores if n])) or 1
        for each in range(max(cores, default=0), 0, -1):
            fit = (n // each for n in cores)
            if sum(min(n, g) if self.gpus else n for n, g in zip(fit, gpus, strict=True)) >= count:
                return count, each
        have = f"{sum(cores)} cores"
        if self.gpus:
            have += f" and {sum(int(node.get('GPU', 0)) for node in nodes)} GPUs"
        raise UsageError(
            f"the Ray cluster {self.address!r} has {have}, too few for {count} workers: give fewer "
            "--workers"
        )


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError:
        raise UsageError("workers on a Ray cluster need Ray: pip install 'gpprune[ray]'") from None
    return cast(ModuleType, ray)


def connect(address: str) -> bool:
    """Connect to a Ray cluster, unless this process is connected; say whether it was not.

    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """
    ray = _ray()
    if ray.is_initialized():
        return False
    if match := re.fullmatch(r"([\w.-]+):(\d+)", address):  # Ray tries for 14 minutes
        try:
            socket.create_connection((match[1], int(match[2])), _KNOCK).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from error
    main = threading.current_thread() is threading.main_thread()
    kept = signal.getsignal(signal.SIGTERM)
    try:
        how: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == "local":
            how["include_dashboard"] = False
        ray.init(address=address, **how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    finally:
        if main and kept is not None:  # Ray puts a handler of its own there
            signal.signal(signal.SIGTERM, kept)
    return True


def disconnect() -> None:
    """Leave the cluster; one that `connect` began by the address "local" ends."""
    _ray().shutdown()


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at --ray {address!r} ({_line(error)}): start one with `ray start "
        "--head`, or give local"
    )


def _asked(call: Callable[..., Any], *what: Any, **how: Any) -> Any:
    """What Ray answers; an interrupt in the midst of its C code is an interrupt."""
    try:
        return call(*what, **how)
    except SystemError as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None
        raise


def _stay() -> None:
    """Leave a cluster as it was found."""


def _line(error: BaseException) -> str:
    return clipped(str(error) or type(error).__name__)


class _Actor:
    """What Ray runs."""

    def __init__(self, build: Build, given: Any, cores: int, settings: SearchSettings) -> None:
        self._settings = settings
        self._made: tuple[Fitness, Language] | None = None
        self._refused: str | None = None
        try:
            self._made = build(given, cores)
        except GppruneError as error:
            self._refused = str(error)

    def ready(self) -> str | None:
        """What is wrong with it."""
        return self._refused

    def judge(self, order: Order) -> Answer:
        """Judge one candidate."""
        if self._made is None:
            raise RuntimeError("a worker that did not start was given an order")
        return answer(order, *self._made, self._settings)


class _Remote(Worker):
    """One actor, as the search sees it."""

    def __init__(self, ray: ModuleType, actor: Any, limit: float | None) -> None:
        super().__init__(limit)
        self._ray, self._actor = ray, actor
        self.answer: Any = None
        self._why = "with its actor"

    def check(self) -> None:
        """Wait until it has started.

        Raises:
            GppruneError: it does not start.
        """
        try:
            wrong = _asked(self._ray.get, self._actor.ready.remote(), timeout=_PATIENCE)
        except self._ray.exceptions.GetTimeoutError:
            wrong = f"it is not ready after {_PATIENCE / 60:g} minutes"
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            wrong = _line(cause if isinstance(cause, Exception) else error)
        if wrong is not None:
            raise GppruneError(f"a worker of the Ray cluster does not start: {wrong}")

    def alive(self) -> bool:
        try:
            self.check()
        except GppruneError:
            return False
        return True

    def send(self, order: Order) -> None:
        self.answer = self._actor.judge.remote(order)

    def answered(self) -> bool:
        ready, _ = _asked(self._ray.wait, [self.answer], timeout=0)
        return bool(ready)

    def receive(self) -> Answer | None:
        try:
            return cast(Answer, _asked(self._ray.get, self.answer))
        except self._ray.exceptions.OutOfMemoryError:
            return NoMemory()
        except self._ray.exceptions.RayError as error:
            self._why = f"as Ray says: {_line(error)}"
            return None

    def stop(self) -> None:
        self._ray.kill(self._actor)

    def end(self) -> str:
        return self._why
