"""A search on a model by actors of a Ray cluster, which load it themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts
from gpprune.errors import GppruneError
from gpprune.gp import RunDirectory, SearchEvent

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpprune[ray]'")
pytestmark = [
    pytest.mark.slow,  # each actor loads torch and transformers
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning"),
]

FEW = gpprune.SearchSettings(population=10, offspring=6, generations=1)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def texts(tiny_text: str, tmp_path: Path) -> Texts:
    path = tmp_path / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return Texts(str(path), str(path), 4, 32, 3)


def told(out: Path) -> list[Any]:
    """All that a run holds, but for the seconds."""
    with RunDirectory.open(out) as own:
        rows = [(o.text, o.losses, o.reason, o.origin, o.estimate) for o in own.outcomes()]
        return [*rows, *own.states()]


@pytest.mark.parametrize(
    "goal",
    [
        lambda *on: gpprune.MetricGoal(*on, dtype="float32", update="refit"),
        lambda *on: gpprune.JointGoal(*on, dtype="float32"),
    ],
)
def test_actors_find_the_same(
    goal: Any, texts: Texts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    made = goal(texts, str(tiny_model_dir))
    gpprune.discover(made, out=tmp_path / "alone", settings=FEW)
    gpprune.discover(
        made, out=tmp_path / "many", settings=FEW, workers=gpprune.RayCluster("auto", 2)
    )
    assert told(tmp_path / "many") == told(tmp_path / "alone")


def test_a_model_that_changes_under_its_workers_is_noticed(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    goal = gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32")

    def change(label: str, done: int, total: int) -> None:
        Path(texts.text).write_text("Another text.\n" * 2000, encoding="utf-8")

    with pytest.raises(GppruneError, match=r"does not start: it finds another .*text"):
        gpprune.discover(goal, settings=FEW, workers=gpprune.RayCluster("auto", 1), progress=change)


def test_the_commands_take_a_cluster(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--windows", "4", "--window-length", "32", "--calibration-samples", "3"]
    on = ["--model", str(tiny_model_dir), "--text", texts.text, "--calibration-text", texts.text]
    size = ["--population", "8", "--generations", "1", "--rivals", "best", "--dtype", "float32"]
    out = str(tmp_path / "run")
    begin = ["evolve", "metric", *on, *few, *size, "--out", out]
    assert run([*begin, "--workers", "3", "--ray", "auto"]) == 2
    assert "2 cores, too few for 3 workers" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
    assert run([*begin, "--ray", "auto"]) == 0
    capsys.readouterr()
    again = ["--ray", "auto", "--json"]
    assert run(["resume", out, "--generations", "2", "--workers", "2", *again]) == 0
    assert json.loads(capsys.readouterr().out)["formulas"]


def test_events_come_as_without_a_cluster(texts: Texts, tiny_model_dir: Path) -> None:
    events: list[SearchEvent] = []
    goal = gpprune.AllocationGoal(texts, str(tiny_model_dir), dtype="float32")
    gpprune.discover(goal, settings=FEW, workers=gpprune.RayCluster("auto"), observer=events.append)
    assert [event.evaluated for event in events] == sorted(event.evaluated for event in events)
    assert events[-1].generation == 1 and events[-1].index == events[-1].total
