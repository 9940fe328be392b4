"""Searches whose candidates are judged by actors of a Ray cluster."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray_words

from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RayActors, RunDirectory, SearchEvent, evolve
from gpprune.primitives import METRIC

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpprune[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(ray_words.__file__).parent)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    del os.environ["PYTHONPATH"]
    if path is not None:
        os.environ["PYTHONPATH"] = path


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "folder"
    folder.mkdir()
    return {"folder": str(folder)}


def searched(toy: ModuleType, given: dict[str, Any], count: int = 2, **how: Any) -> Any:
    how = {"settings": toy.SETTINGS, "seeds": toy.SEEDS, **how}
    crew = RayActors("local", ray_words.made, given, count)
    return evolve(METRIC, toy.Words(), workers=crew, **how)


@pytest.mark.parametrize("overlap", [0, 1])
def test_two_actors_give_the_same_run(
    toy: ModuleType, tmp_path: Path, given: dict[str, Any], overlap: int
) -> None:
    settings = toy.SETTINGS.replaced(overlap=overlap)
    whole = RunDirectory.create(tmp_path / "whole", settings, {})
    alone = toy.facts(evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=whole))
    many = RunDirectory.create(tmp_path / "many", settings, {})
    assert toy.facts(searched(toy, given, settings=None, run=many)) == alone
    kept = []
    for name in ("whole", "many"):
        with RunDirectory.open(tmp_path / name) as run:
            kept.append([(o.text, o.losses, o.reason) for o in run.outcomes()] + run.states())
    assert kept[0] == kept[1]
    assert len(list(Path(given["folder"]).glob("pid-*"))) == 2
    assert ray.is_initialized()  # a cluster that was there stays


def test_actors_killed_at_random_change_nothing(toy: ModuleType, given: dict[str, Any]) -> None:
    whole = toy.facts(evolve(METRIC, toy.Words(), settings=toy.SETTINGS, seeds=toy.SEEDS))
    draw, killed = random.Random(2), set[int]()

    def kill(event: SearchEvent) -> None:
        if event.outcome is not None and event.evaluated in (5, 19, 33):
            pids = {int(path.name[4:]) for path in Path(given["folder"]).glob("pid-*")} - killed
            victim = draw.choice(sorted(pids))
            os.kill(victim, signal.SIGKILL)
            killed.add(victim)

    given["pause"] = 0.002
    assert toy.facts(searched(toy, given, observer=kill)) == whole
    assert len(killed) == 3


def test_an_actor_that_dies_once_changes_nothing(toy: ModuleType, given: dict[str, Any]) -> None:
    whole = toy.facts(evolve(METRIC, toy.Words(), settings=toy.SETTINGS, seeds=toy.SEEDS))
    given |= {"marked": [whole[9][1], whole[30][1]], "how": "die", "once": True}
    assert toy.facts(searched(toy, given)) == whole
    assert len(list(Path(given["folder"]).glob("seen-*"))) == 2


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("die", "its worker died twice, in the end as Ray says: "),
        ("memory", "ran out of memory twice"),
        ("sleep", "ran past 1.5 s and was stopped"),
    ],
)
def test_a_candidate_that_ends_its_actors_fails(
    toy: ModuleType, given: dict[str, Any], how: str, reason: str
) -> None:
    settings = toy.SETTINGS.replaced(generations=1, candidate_time_limit=1.5)
    whole = evolve(METRIC, toy.Words(), settings=settings, seeds=toy.SEEDS)
    bad = whole.outcomes[8].text
    given |= {"marked": [bad], "how": how}
    found = searched(toy, given, settings=settings)
    reasons = {outcome.text: outcome.reason for outcome in found.outcomes}
    assert reasons.pop(bad).startswith(reason)
    assert found.generations == 1 and None in reasons.values()


def test_a_fitness_that_breaks_its_protocol_ends_the_search(
    toy: ModuleType, given: dict[str, Any]
) -> None:
    seed = evolve(METRIC, toy.Words(), settings=toy.SETTINGS, seeds=toy.SEEDS).outcomes[0].text
    given |= {"marked": [seed], "how": "short"}
    with pytest.raises(UsageError, match="must return one for each"):
        searched(toy, given)


def test_workers_that_cannot_start_are_said(toy: ModuleType, given: dict[str, Any]) -> None:
    given["refused"] = True
    with pytest.raises(GppruneError, match="does not start: there is no model here"):
        searched(toy, given)


@pytest.mark.parametrize(
    ("count", "words"), [(5, "4 cores, too few for 5 workers"), (0, "judge nothing")]
)
def test_a_number_of_workers_that_has_no_place_is_said(
    toy: ModuleType, given: dict[str, Any], count: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        searched(toy, given, count)
