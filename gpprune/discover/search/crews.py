"""Who judges the candidates of a search on a model: this process, forks of it, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from gpprune.discover.goals.goal import Goal
from gpprune.discover.report import versions
from gpprune.discover.search.ready import ready
from gpprune.discover.stored import settled
from gpprune.discover.workbench import LayerStatistics, Workbench
from gpprune.errors import UsageError
from gpprune.gp import Crew, Fitness, Forks, RayActors, SearchSettings
from gpprune.gp.workers import Hired, check_count, connect, disconnect
from gpprune.primitives import Language
from gpprune.prune import use_device


@dataclass(frozen=True)
class RayCluster:
    """Workers on a Ray cluster, each of which loads the model once and holds its statistics.

    Attributes:
        address: what `ray.init` takes: "auto", "HOST:PORT", or "local" for this machine alone.
        workers: how many; None: one for each GPU, or each node where the model is on the CPU.
    """

    address: str
    workers: int | None = None


Workers = int | RayCluster


def hired(workers: int | None = None, ray: str | None = None) -> Workers:
    """The workers that `--workers` and `--ray` ask for; without either, this process alone."""
    if ray is not None:
        return RayCluster(ray, workers)
    return 1 if workers is None else workers


@dataclass(frozen=True)
class _Given:
    """What a worker elsewhere makes its fitness of."""

    goal: Goal
    statistics: LayerStatistics
    digests: dict[str, str]
    versions: dict[str, str]
    device: str


@contextmanager
def reached(workers: Workers) -> Iterator[None]:
    """Be connected to the cluster of the workers, if they are on one.

    Raises:
        UsageError: there is no worker, or no cluster answers.
    """
    check_count(workers.workers if isinstance(workers, RayCluster) else workers)
    own = isinstance(workers, RayCluster) and connect(workers.address)
    try:
        yield
    finally:
        if own:
            disconnect()


@contextmanager
def started(
    workers: Workers, goal: Goal, bench: Workbench, fitness: Fitness, settings: SearchSettings
) -> Iterator[int | Crew]:
    """Workers that judge by a fitness: they start before a search has begun anything.

    Raises:
        UsageError: they cannot be had here.
        GppruneError: they do not start.
    """
    crew = _crew_of(workers, goal, bench)
    if isinstance(crew, int):
        yield crew
        return
    judge = crew.hire(fitness, goal.language, settings)
    try:
        yield Hired(judge)
    finally:
        judge.close()


def _crew_of(workers: Workers, goal: Goal, bench: Workbench) -> int | Crew:
    """What `gpprune.evolve` takes as workers.

    Raises:
        UsageError: several are to share a GPU.
    """
    device = next(bench.loaded.model.parameters()).device
    if isinstance(workers, RayCluster):
        given = _Given(
            settled(goal, bench), bench.statistics(), bench.digests(), versions(), device.type
        )
        gpus = int(device.type == "cuda")
        return RayActors(workers.address, _made, given, workers.workers, gpus)
    if workers == 1:
        return 1
    if device.type != "cpu":
        raise UsageError(
            f"{workers} workers cannot share a model on {device}: give --workers 1, or --device cpu"
        )
    threads = max(1, torch.get_num_threads() // workers)
    return Forks(workers, partial(torch.set_num_threads, threads))


def _made(given: _Given, cores: int) -> tuple[Fitness, Language]:
    """A fitness and its language where a worker runs, of the same model and texts.

    Raises:
        UsageError: what lies there is something else.
        GppruneError: it is not there.
    """
    torch.set_num_threads(cores)
    use_device(given.device)
    own = versions()
    for name, version in given.versions.items():
        if own.get(name) != version:
            raise UsageError(
                f"it has {name} {own.get(name)}, and the search has {version}: install the same"
            )
    bench = ready(given.goal, statistics=given.statistics)
    found = bench.digests()
    if changed := sorted(what for what, own in given.digests.items() if found.get(what) != own):
        raise UsageError(f"it finds another {' and another '.join(changed)} than the search")
    return given.goal.fitness(bench), given.goal.language
