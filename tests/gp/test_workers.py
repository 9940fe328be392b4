"""Searches whose candidates are judged by several processes."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpprune.errors import UsageError
from gpprune.gp import Forks, RayActors, RunDirectory, SearchEvent, SearchSettings, evolve
from gpprune.primitives import METRIC, Formula


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def searched(toy: ModuleType, fitness: Any, workers: Any, **how: Any) -> Any:
    given = {"settings": toy.SETTINGS, "seeds": toy.SEEDS, **how}
    return evolve(METRIC, fitness, workers=workers, **given)


class Estimated:
    """A toy fitness with estimates, some of which spare a candidate its judging."""

    def __init__(self, words: Any) -> None:
        self.words = words
        self.cases = words.cases

    def prepare(self, formula: Formula) -> Any:
        return self.words.prepare(formula)

    def estimate(self, formula: Formula) -> float:
        return math.exp(self.words.true_loss(formula.text) / 3)


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("estimated", [False, True])
def test_any_number_of_workers_gives_the_same_run(
    toy: ModuleType, tmp_path: Path, workers: int, estimated: bool
) -> None:
    found = []
    for count in (1, workers):
        fitness = Estimated(toy.Words()) if estimated else toy.Words()
        run = RunDirectory.create(tmp_path / str(count), toy.SETTINGS, {})
        found.append(toy.facts(searched(toy, fitness, count, run=run, settings=None)))
        with RunDirectory.open(tmp_path / str(count)) as kept:
            found[-1] += [(o.text, o.losses, o.reason, o.estimate) for o in kept.outcomes()]
            found[-1] += kept.states()
    assert found[0] == found[1]
    assert len(found[0]) > 60
    if estimated:
        assert any(row[-1] is not None for row in found[0] if isinstance(row, tuple))


STEADY = {"overlap": 5, "offspring": 1, "generations": 30}


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("how", [{"overlap": 2}, STEADY], ids=["generations", "steady"])
def test_generations_that_overlap_give_the_same_run_for_any_number_of_workers(
    toy: ModuleType, tmp_path: Path, workers: int, how: dict[str, int]
) -> None:
    settings = toy.SETTINGS.replaced(**how)
    found = []
    for count in (1, workers):
        run = RunDirectory.create(tmp_path / str(count), settings, {})
        fitness = toy.Words(pause=0.001)
        found.append(toy.facts(searched(toy, fitness, count, run=run, settings=None)))
        with RunDirectory.open(tmp_path / str(count)) as kept:
            found[-1] += [(o.text, o.losses, o.reason) for o in kept.outcomes()]
            found[-1] += kept.states()
    assert found[0] == found[1]


def test_a_formula_is_bred_from_what_was_judged_an_overlap_before(toy: ModuleType) -> None:
    for overlap in (0, 1, 3):
        settings = toy.SETTINGS.replaced(overlap=overlap, generations=8)
        found = searched(toy, toy.Words(), 1, settings=settings)
        born = {o.key: o.generation for o in found.outcomes}
        gaps = [
            o.generation - max(born[parent] for parent in o.parents)
            for o in found.outcomes
            if o.parents and o.generation > overlap
        ]
        assert min(gaps) == overlap + 1


@pytest.mark.parametrize("overlap", [0, 2])
def test_a_generation_without_anything_new_counts_its_hits_once(
    toy: ModuleType, tmp_path: Path, overlap: int
) -> None:
    settings = toy.SETTINGS.replaced(overlap=overlap, offspring=1, generations=25)

    def coarse(formula: Formula) -> str:
        return str(formula.complexity)

    hits = []
    for count in (1, 3):
        run = RunDirectory.create(tmp_path / str(count), settings, {})
        how = {"run": run, "settings": None, "fingerprint": coarse}
        found = searched(toy, toy.Words(), count, **how)
        born = {outcome.generation for outcome in found.outcomes}
        assert any(at not in born and any(later > at for later in born) for at in range(1, 25))
        with RunDirectory.open(tmp_path / str(count)) as kept:
            hits += [found.archive_hits, kept.state().archive_hits]
    assert len({*hits}) == 1


class Waiting:
    """A toy fitness, one of whose candidates is not done before another one has begun."""

    def __init__(self, words: Any, text: str, other: str, begun: Path) -> None:
        self.words, self.text, self.other, self.begun = words, text, other, begun
        self.cases = words.cases

    def prepare(self, formula: Formula) -> Any:
        if formula.text == self.other:
            self.begun.touch()
        for _ in range(2000):
            if formula.text != self.text or self.begun.exists():
                return self.words.prepare(formula)
            time.sleep(0.01)
        raise RuntimeError("it waited in vain")


def test_a_slow_candidate_does_not_keep_the_next_generation(
    toy: ModuleType, tmp_path: Path
) -> None:
    settings = toy.SETTINGS.replaced(overlap=1)
    whole = searched(toy, toy.Words(), 1, settings=settings)
    of = [[o.text for o in whole.outcomes if o.generation == number] for number in range(4)]
    waiting = Waiting(toy.Words(), of[1][0], of[2][-1], tmp_path / "begun")
    assert toy.facts(searched(toy, waiting, 2, settings=settings)) == toy.facts(whole)


@pytest.mark.parametrize("at", [5, 14, 23, 31])
@pytest.mark.parametrize("how", [{"overlap": 2}, STEADY], ids=["generations", "steady"])
def test_a_run_whose_generations_overlap_goes_on_as_if_unbroken(
    toy: ModuleType, tmp_path: Path, at: int, how: dict[str, int]
) -> None:
    settings = toy.SETTINGS.replaced(**how)
    whole = toy.facts(searched(toy, toy.Words(), 1, settings=settings))
    run = RunDirectory.create(tmp_path / "run", settings, {})

    def break_off(event: SearchEvent) -> None:
        if event.evaluated == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(toy, toy.Words(), 3, run=run, settings=None, observer=break_off)
    shorter = settings.replaced(generations=settings.generations - 1)
    with RunDirectory.open(tmp_path / "run") as kept:
        searched(toy, toy.Words(), 2, run=kept, settings=shorter)
        assert toy.facts(searched(toy, toy.Words(), 1, run=kept, settings=None)) == whole


def test_a_run_goes_on_with_another_number_of_workers(toy: ModuleType, tmp_path: Path) -> None:
    whole = toy.facts(searched(toy, toy.Words(), 1))
    run = RunDirectory.create(tmp_path / "run", toy.SETTINGS, {})

    def break_off(event: SearchEvent) -> None:
        if event.evaluated == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searched(toy, toy.Words(), 3, run=run, settings=None, observer=break_off)
    assert multiprocessing.active_children() == []
    with RunDirectory.open(tmp_path / "run") as kept:
        assert len(kept.outcomes()) == 17
        assert toy.facts(searched(toy, toy.Words(), 2, run=kept, settings=None)) == whole


class Marked:
    """A toy fitness that does something else in a worker, to candidates that it is told of."""

    def __init__(self, words: Any, at: Callable[[str], bool], do: Callable[[], None]) -> None:
        self.words, self.at, self.do = words, at, do
        self.cases = words.cases

    def prepare(self, formula: Formula) -> Any:
        if multiprocessing.parent_process() is not None and self.at(formula.text):
            self.do()
        return self.words.prepare(formula)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_once_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    whole = toy.facts(searched(toy, toy.Words(), 1))
    texts = [row[1] for row in whole[1:]]
    unlucky = {*texts[:2], texts[9], texts[20], texts[-1]}

    def first(text: str) -> bool:
        if text not in unlucky:
            return False
        mark = tmp_path / str(texts.index(text))
        seen = mark.exists()
        mark.touch()
        return not seen

    assert toy.facts(searched(toy, Marked(toy.Words(), first, die), 2)) == whole
    assert len(list(tmp_path.iterdir())) == len(unlucky)


def test_workers_killed_at_random_moments_change_nothing(toy: ModuleType) -> None:
    whole = toy.facts(searched(toy, toy.Words(), 1))
    draw, killed = random.Random(5), []

    def kill(event: SearchEvent) -> None:
        if event.evaluated in (5, 19, 33) and event.outcome is not None:
            time.sleep(draw.random() / 50)
            victim = draw.choice(multiprocessing.active_children())
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    fitness = toy.Words(pause=0.002)
    assert toy.facts(searched(toy, fitness, 3, observer=kill)) == whole
    assert len(killed) == 3


def test_workers_killed_while_they_are_idle_change_nothing(toy: ModuleType) -> None:
    whole = toy.facts(searched(toy, toy.Words(), 1))

    def kill_all(event: SearchEvent) -> None:
        if event.outcome is None:  # between two generations
            for child in multiprocessing.active_children():
                child.kill()
                child.join()

    assert toy.facts(searched(toy, toy.Words(), 2, observer=kill_all)) == whole


def test_a_candidate_that_kills_its_workers_fails(toy: ModuleType) -> None:
    whole = searched(toy, toy.Words(), 1)
    bad = whole.outcomes[14].text
    found = searched(toy, Marked(toy.Words(), lambda text: text == bad, die), 2)
    reasons = {o.text: o.reason for o in found.outcomes}
    assert reasons[bad] == "its worker died twice, in the end by signal 9"
    assert found.generations == whole.generations


def test_a_candidate_that_memory_does_not_hold_fails_at_its_second_try(toy: ModuleType) -> None:
    def out_of_memory() -> None:
        raise MemoryError

    bad = searched(toy, toy.Words(), 1).outcomes[14].text
    found = searched(toy, Marked(toy.Words(), lambda text: text == bad, out_of_memory), 2)
    assert {o.text: o.reason for o in found.outcomes}[bad] == "ran out of memory twice"


def test_a_candidate_past_its_limit_is_stopped(toy: ModuleType) -> None:
    bad = searched(toy, toy.Words(), 1).outcomes[14].text
    fitness = Marked(toy.Words(), lambda text: text == bad, lambda: time.sleep(600))
    settings = toy.SETTINGS.replaced(candidate_time_limit=0.5, generations=1)
    found = searched(toy, fitness, 2, settings=settings)
    reasons = {o.text: o.reason for o in found.outcomes}
    assert reasons[bad] == "ran past 0.5 s and was stopped"
    assert sum(reason is not None for reason in reasons.values()) < 6


def test_a_fitness_that_breaks_its_protocol_ends_the_search(toy: ModuleType) -> None:
    class Short(toy.Words):  # type: ignore[misc, name-defined]
        def prepare(self, formula: Formula) -> Any:
            return lambda start, stop: [0.0]

    with pytest.raises(UsageError, match="must return one for each"):
        searched(toy, Short(), 2)


def test_a_time_limit_ends_all(toy: ModuleType) -> None:
    settings = toy.SETTINGS.replaced(time_limit=0.3, generations=1000)
    found = searched(toy, toy.Words(pause=0.05), 3, settings=settings)
    assert found.stopped == "time limit"
    assert 1 <= found.evaluated < 200


def test_a_second_try_is_had_past_the_time_limit(toy: ModuleType, tmp_path: Path) -> None:
    slow = [outcome.text for outcome in searched(toy, toy.Words(), 1).outcomes][3]

    def first(text: str) -> bool:
        seen = (tmp_path / "seen").exists()
        return text == slow and not seen

    def late() -> None:
        (tmp_path / "seen").touch()
        time.sleep(1.5)
        die()

    settings = toy.SETTINGS.replaced(time_limit=1, generations=1000)
    found = searched(toy, Marked(toy.Words(pause=0.05), first, late), 3, settings=settings)
    assert found.stopped == "time limit"
    assert {outcome.text: outcome.reason for outcome in found.outcomes}[slow] is None


def test_workers_do_what_they_begin_with(toy: ModuleType, tmp_path: Path) -> None:
    def begin() -> None:
        (tmp_path / str(os.getpid())).touch()

    settings = SearchSettings(population=6, generations=0)
    searched(toy, toy.Words(pause=0.05), Forks(3, begin), settings=settings)
    assert 1 <= len(list(tmp_path.iterdir())) <= 3
    assert not (tmp_path / str(os.getpid())).exists()


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_is_a_usage_error(toy: ModuleType, workers: int) -> None:
    with pytest.raises(UsageError, match="workers judge nothing"):
        searched(toy, toy.Words(), workers)


def test_workers_of_ray_without_ray_are_a_usage_error(
    toy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    crew = RayActors("local", lambda given, cores: (toy.Words(), METRIC))
    with pytest.raises(UsageError, match=r"pip install 'gpprune\[ray\]'"):
        searched(toy, toy.Words(), crew)


def test_workers_end_with_a_search_that_is_killed(toy: ModuleType) -> None:
    code = f"""
        import importlib.util, multiprocessing, time
        spec = importlib.util.spec_from_file_location("toy", {toy.__file__!r})
        toy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(toy)
        def tell(event):
            if event.evaluated == 4:
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                time.sleep(60)
        toy.evolve(toy.METRIC, toy.Words(), settings=toy.SETTINGS, seeds=toy.SEEDS, workers=2,
                   observer=tell)
    """
    search = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert search.stdout is not None
    children = [int(word) for word in search.stdout.readline().split()]
    search.kill()
    search.wait()
    search.stdout.close()
    assert len(children) == 2
    for _ in range(100):
        alive = [pid for pid in children if _lives(pid)]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
