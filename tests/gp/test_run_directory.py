"""The run directory: whole or not at all, resumed to the same end, damage told in a sentence."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RunDirectory, SearchSettings, evolve
from gpprune.primitives import METRIC

PROBLEM: dict[str, Any] = {
    "model": "smollm2",
    "sparsity": 0.5,
    "windows": [8, 512],
    "text": {"spec": "wikitext2", "split": "validation"},
    "note": 'a line\nand "quotes", é',
}


@pytest.fixture
def finished(toy: ModuleType, tmp_path: Path) -> Path:
    """A run that went to its end."""
    path = tmp_path / "run"
    with RunDirectory.create(path, toy.SETTINGS, PROBLEM) as run:
        evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
    return path


def resumed(toy: ModuleType, path: Path, **changes: Any) -> Any:
    with RunDirectory.open(path) as run:
        settings = run.search.replaced(**changes) if changes else None
        return evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run, settings=settings)


def unbroken(toy: ModuleType, **changes: Any) -> Any:
    settings = toy.SETTINGS.replaced(**changes)
    return toy.facts(evolve(METRIC, toy.Words(), seeds=toy.SEEDS, settings=settings))


def test_settings_and_problem_come_back(toy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "run"
    settings = toy.SETTINGS.replaced(time_limit=12.5, race_z=float("inf"))
    RunDirectory.create(path, settings, {**PROBLEM, "device": None}).close()
    with RunDirectory.open(str(path)) as run:
        assert run.search == settings
        assert run.problem == PROBLEM
        assert run.outcomes() == []
        assert run.states() == []
    assert sorted(os.listdir(path.parent)) == ["run"]


def test_a_run_keeps_what_the_search_found(toy: ModuleType, finished: Path) -> None:
    with RunDirectory.open(finished) as run:
        assert len(run.states()) == toy.SETTINGS.generations + 1
        stored = run.outcomes()
    result = resumed(toy, finished)
    assert result.outcomes == stored
    assert toy.facts(result) == unbroken(toy)


def test_a_finished_run_evaluates_nothing_more(toy: ModuleType, finished: Path) -> None:
    fitness = toy.Words()
    with RunDirectory.open(finished) as run:
        evolve(METRIC, fitness, seeds=toy.SEEDS, run=run)
    assert fitness.prepared == []


def test_a_finished_run_can_go_on(toy: ModuleType, finished: Path) -> None:
    assert toy.facts(resumed(toy, finished, generations=6)) == unbroken(toy, generations=6)


def test_a_search_stopped_after_every_candidate_ends_the_same(
    toy: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    RunDirectory.create(path, toy.SETTINGS, {}).close()
    calls = 0
    while True:
        result = resumed(toy, path, time_limit=1e-9)
        calls += 1
        if result.stopped is None:
            break
        assert result.stopped == "time limit"
        assert result.evaluated == calls
    assert toy.facts(result) == unbroken(toy)


@pytest.mark.parametrize("at", [0, 5, 13, 20])
def test_an_interrupt_loses_only_the_candidate_at_hand(
    toy: ModuleType, tmp_path: Path, at: int
) -> None:
    class Interrupted(toy.Words):  # type: ignore[misc, name-defined]
        def prepare(self, formula: Any) -> Any:
            if len(self.prepared) == at:
                raise KeyboardInterrupt
            return super().prepare(formula)

    path = tmp_path / "run"
    run = RunDirectory.create(path, toy.SETTINGS, {})
    with pytest.raises(KeyboardInterrupt):
        evolve(METRIC, Interrupted(), seeds=toy.SEEDS, run=run)
    assert kept(path) == at
    assert toy.facts(resumed(toy, path)) == unbroken(toy)


def kill(toy: ModuleType, path: Path, count: int, moment: str) -> None:
    """Search in another process that kills itself once `count` candidates are done."""
    child = subprocess.run(
        [sys.executable, toy.__file__, str(path), "--kill", str(count), moment],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.returncode == -signal.SIGKILL


def kept(path: Path) -> int:
    with RunDirectory.open(path) as run:
        return len(run.outcomes())


def test_sigkill_at_five_moments_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "run"
    moments = [(0, "trial"), (9, "recorded"), (12, "prepare"), (23, "trial"), (37, "recorded")]
    for count, moment in moments:
        kill(toy, path, count, moment)
        assert kept(path) == count
    assert toy.facts(resumed(toy, path)) == unbroken(toy)


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written down"):
        RunDirectory.create(tmp_path / "run", SearchSettings(), {"model": object()})
    (tmp_path / "file").write_text("")
    with pytest.raises(GppruneError, match="cannot make the run directory"):
        RunDirectory.create(tmp_path / "file" / "run", SearchSettings(), {})
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_path_is_not_touched(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"run exists: choose another directory"):
        RunDirectory.create(path, SearchSettings(), {})
    assert os.listdir(tmp_path) == ["run"]


def test_two_processes_cannot_run_one_search(toy: ModuleType, finished: Path) -> None:
    with RunDirectory.open(finished) as run, run.exclusive():
        other = subprocess.run(
            [sys.executable, str(Path(toy.__file__)), str(finished)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        assert other.returncode != 0
        assert "is in use by another process" in other.stderr
        with RunDirectory.open(finished) as reader:
            assert reader.outcomes()  # reading needs no lock
    assert resumed(toy, finished).stopped is None


def test_other_settings_or_cases_are_refused(toy: ModuleType, finished: Path) -> None:
    with pytest.raises(UsageError, match="--population 3 differs from 12"):
        resumed(toy, finished, population=3)
    with (
        pytest.raises(GppruneError, match="on 16 cases, but the fitness has 8"),
        RunDirectory.open(finished) as run,
    ):
        evolve(METRIC, toy.Words(cases=8), run=run)


def test_a_path_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a directory"):
        RunDirectory.open(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"has no settings\.toml"):
        RunDirectory.open(tmp_path)


def test_settings_cut_off_anywhere_are_noticed(finished: Path) -> None:
    file = finished / "settings.toml"
    whole = file.read_bytes()
    for length in range(len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(GppruneError) as caught:
            RunDirectory.open(finished)
        assert "settings.toml" in str(caught.value)
        assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    RunDirectory.open(finished)


def test_another_format_version_is_refused(finished: Path) -> None:
    file = finished / "settings.toml"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace("format = 2", "format = 3"), encoding="utf-8")
    with pytest.raises(UsageError, match="is of format 3, but this gpprune reads format 2"):
        RunDirectory.open(finished)
    file.write_text(whole, encoding="utf-8")
    with sqlite3.connect(finished / "run.db") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(UsageError, match="is of format 7"):
        RunDirectory.open(finished)


def test_a_bad_setting_on_disk_names_the_file(finished: Path) -> None:
    file = finished / "settings.toml"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace("population = 12", "population = 0"), encoding="utf-8")
    with pytest.raises(UsageError, match=r"settings\.toml cannot be used: --population 0"):
        RunDirectory.open(finished)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_database_cut_off_is_told_and_left_as_it_is(finished: Path, share: float) -> None:
    file = finished / "run.db"
    cut = file.read_bytes()[: int(share * file.stat().st_size)]
    file.write_bytes(cut)
    with pytest.raises(GppruneError) as caught:
        RunDirectory.open(finished)
    assert "run.db" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert file.read_bytes() == cut


def test_a_missing_or_foreign_database_is_told(finished: Path) -> None:
    file = finished / "run.db"
    file.write_bytes(b"not a database at all, " * 100)
    with pytest.raises(GppruneError, match=r"run\.db cannot be used: file is not a database"):
        RunDirectory.open(finished)
    file.unlink()
    with pytest.raises(GppruneError, match=r"run\.db is missing"):
        RunDirectory.open(finished)
    assert not file.exists()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE candidates SET losses = '[1.0, ' WHERE number = 2",
        "UPDATE candidates SET parents = '7' WHERE number = 2",
        "UPDATE generations SET state = '{}' WHERE generation = 1",
        "UPDATE generations SET state = 'cut' WHERE generation = 1",
        "DELETE FROM candidates WHERE number < 4",
        "DROP TABLE generations",
    ],
)
def test_a_damaged_row_is_told(finished: Path, damage: str) -> None:
    with sqlite3.connect(finished / "run.db") as database:
        database.execute(damage)
    database.close()
    with pytest.raises(GppruneError, match=r"run\.db cannot be used"):
        RunDirectory.open(finished)


def test_a_cut_write_ahead_log_costs_only_what_was_not_committed(
    toy: ModuleType, tmp_path: Path
) -> None:
    """As after a power cut: the log's last transaction is half there."""
    path = tmp_path / "run"
    kill(toy, path, 20, "recorded")
    log = path / "run.db-wal"
    log.write_bytes(log.read_bytes()[:-1000])
    assert kept(path) == 19
    assert toy.facts(resumed(toy, path)) == unbroken(toy)


def test_the_database_reads_as_plain_sql(toy: ModuleType, finished: Path) -> None:
    with sqlite3.connect(finished / "run.db") as database:
        rows = database.execute(
            "SELECT text, fitness, losses FROM candidates WHERE complete ORDER BY fitness"
        ).fetchall()
    database.close()
    text, fitness, losses = rows[0]
    values = json.loads(losses)
    assert len(values) == 16
    assert fitness == pytest.approx(sum(values) / 16)
    assert text in {o.text for o in resumed(toy, finished).best(3)}
