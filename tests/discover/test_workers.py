"""A search on a model by several processes, which share it."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts
from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RunDirectory, SearchEvent

FEW = gpprune.SearchSettings(population=14, offspring=8, generations=2)


@pytest.fixture
def texts(tiny_text: str, tmp_path: Path) -> Texts:
    path = tmp_path / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return Texts(str(path), str(path), 4, 32, 3)


def told(out: Path) -> list[Any]:
    """All that a run holds, but for the seconds."""
    with RunDirectory.open(out) as own:
        rows = [
            (o.key, o.text, o.losses, o.fitness, o.reason, o.origin, o.parents, o.estimate)
            for o in own.outcomes()
        ]
        return [*rows, *own.states()]


@pytest.mark.parametrize(
    "goal",
    [
        lambda *on: gpprune.MetricGoal(*on, pattern="model", dtype="float32"),
        lambda *on: gpprune.MetricGoal(*on, dtype="float32", update="refit"),
        lambda *on: gpprune.AllocationGoal(*on, dtype="float32"),
    ],
)
def test_any_number_of_workers_finds_the_same(
    goal: Any, texts: Texts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    made = goal(texts, str(tiny_model_dir))
    found = []
    for count in (1, 2, 4):
        out = tmp_path / str(count)
        before = torch.get_num_threads()
        document = gpprune.discover(made, out=out, settings=FEW, workers=count).document()
        assert torch.get_num_threads() == before
        found.append([told(out), document["formulas"]])
    assert found[0] == found[1] == found[2]


def test_workers_killed_at_random_change_nothing(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    goal = gpprune.MetricGoal(texts, str(tiny_model_dir), pattern="model", dtype="float32")
    gpprune.discover(goal, out=tmp_path / "whole", settings=FEW)
    draw, killed = random.Random(1), []

    def kill(event: SearchEvent) -> None:
        if event.outcome is not None and event.evaluated in (3, 14, 22):
            victim = draw.choice(multiprocessing.active_children())
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(victim.pid)

    gpprune.discover(goal, out=tmp_path / "hurt", settings=FEW, workers=2, observer=kill)
    assert len(killed) == 3
    assert told(tmp_path / "hurt") == told(tmp_path / "whole")


def test_the_command_takes_workers(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--windows", "4", "--window-length", "32", "--calibration-samples", "3"]
    on = ["--model", str(tiny_model_dir), "--text", texts.text, "--calibration-text", texts.text]
    size = ["--population", "8", "--generations", "1", "--rivals", "best", "--dtype", "float32"]
    out = str(tmp_path / "run")
    assert run(["evolve", "metric", *on, *few, *size, "--workers", "2", "--out", out]) == 0
    assert run(["resume", out, "--generations", "2", "--workers", "3"]) == 0
    alone = str(tmp_path / "alone")
    size[3] = "2"
    assert run(["evolve", "metric", *on, *few, *size, "--out", alone]) == 0
    assert told(tmp_path / "run") == told(tmp_path / "alone")
    capsys.readouterr()
    assert run(["evolve", "metric", *on, "--workers", "0", "--out", out]) == 2
    assert "--workers" in capsys.readouterr().err


def test_workers_that_cannot_be_had_leave_nothing(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32")
    out = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="need Ray"):
        gpprune.discover(goal, out=out, settings=FEW, workers=gpprune.RayCluster("auto", 2))
    assert not out.exists()
    started = []

    def scarce(*given: Any, **how: Any) -> Any:
        if len(started) == 2:
            raise OSError(24, "Too many open files")
        started.append(pipe(*given, **how))
        return started[-1]

    pipe = multiprocessing.get_context("fork").Pipe
    monkeypatch.setattr(multiprocessing.context.ForkContext, "Pipe", scarce, raising=False)
    with pytest.raises(GppruneError, match=r"cannot start a worker.*try fewer"):
        gpprune.discover(goal, out=out, settings=FEW, workers=3)
    assert not out.exists() and not multiprocessing.active_children()


def test_a_signal_to_all_processes_ends_them_without_a_traceback(
    texts: Texts, tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    on = ["--model", str(tiny_model_dir), "--text", texts.text, "--calibration-text", texts.text]
    few = ["--windows", "4", "--window-length", "32", "--generations", "500", "--workers", "2"]
    command = [sys.executable, "-m", "gpprune", "evolve", "metric", *on, *few, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not (out / "run.db").exists() or not told(out):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert b"Traceback" not in said and b"gpprune resume" in said
