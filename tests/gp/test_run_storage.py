"""The run directory and the file system: full disks, read-only folders, umask, odd paths."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gpprune.errors import GppruneError, UsageError
from gpprune.gp import RunDirectory, SearchSettings, evolve
from gpprune.primitives import METRIC

NOBODY = 65534


def searched(toy: ModuleType, path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Search in another process."""
    return subprocess.run(
        [sys.executable, toy.__file__, str(path), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )


def resumed(toy: ModuleType, path: Path) -> Any:
    with RunDirectory.open(path) as run:
        return evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)


def unbroken(toy: ModuleType) -> Any:
    return toy.facts(evolve(METRIC, toy.Words(), seeds=toy.SEEDS, settings=toy.SETTINGS))


@pytest.fixture
def broken(toy: ModuleType, tmp_path: Path) -> Path:
    """A run that was killed after 20 candidates: all of them are in the write-ahead log."""
    path = tmp_path / "broken"
    assert searched(toy, path, "--kill", "20", "recorded").returncode < 0
    assert (path / "run.db-wal").stat().st_size > 0
    return path


@pytest.fixture
def finished(toy: ModuleType, tmp_path: Path) -> Path:
    """A run that went to its end."""
    path = tmp_path / "finished"
    with RunDirectory.create(path, toy.SETTINGS, {"goal": "metric"}) as run:
        evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
    return path


def test_a_run_goes_on_as_another_process_stops_reading_it(
    toy: ModuleType, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last to close takes the log away, here while we ask whether it may be written."""
    readers: list[sqlite3.Connection] = []
    access = os.access

    def asked(path: Path, *how: Any, **more: Any) -> bool:
        if path == finished:  # the folder is asked for first
            readers.append(sqlite3.connect(finished / "run.db"))
            readers[-1].execute("SELECT count(*) FROM candidates").fetchone()
            assert (finished / "run.db-wal").exists()
        elif path.name.endswith("-wal"):
            while readers:
                readers.pop().close()
        return access(path, *how, **more)

    monkeypatch.setattr(os, "access", asked)
    settings = toy.SETTINGS.replaced(generations=toy.SETTINGS.generations + 1)
    with RunDirectory.open(finished) as run:
        longer = evolve(METRIC, toy.Words(), settings=settings, seeds=toy.SEEDS, run=run)
    assert longer.generations == settings.generations


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As after `ulimit -f`; what is written past it fails, as it does on a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def check_said(said: str, path: Path) -> None:
    assert "free some space" in said and "intact" in said
    assert f"gpprune resume '{path}'" in said
    assert "restore" not in said


@pytest.mark.parametrize("limit", [0, 20_000, 33_000, 90_000, 200_000])
def test_a_full_disk_leaves_the_run_intact_and_says_so(
    toy: ModuleType, tmp_path: Path, limit: int
) -> None:
    path = tmp_path / "my run"
    RunDirectory.create(path, toy.SETTINGS, {}).close()
    with files_of_at_most(limit), pytest.raises(GppruneError) as caught:
        resumed(toy, path)
    check_said(str(caught.value), path)
    with RunDirectory.open(path) as run:
        assert bool(run.outcomes()) == (limit > 32_768)  # what the log's index takes
    assert toy.facts(resumed(toy, path)) == unbroken(toy)


def test_a_process_that_a_full_disk_ends_leaves_the_run_intact(
    toy: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "my run"
    stopped = searched(toy, path, "--limit", "150000")
    assert stopped.returncode == 1
    check_said(stopped.stderr.splitlines()[-1], path)
    assert toy.facts(resumed(toy, path)) == unbroken(toy)


@pytest.mark.parametrize("limit", [0, 100, 9000])
def test_a_run_that_finds_no_space_is_not_made(tmp_path: Path, limit: int) -> None:
    with (
        files_of_at_most(limit),
        pytest.raises(GppruneError, match=r"cannot make the run directory .*: free some space"),
    ):
        RunDirectory.create(tmp_path / "run", SearchSettings(), {})
    assert os.listdir(tmp_path) == []


@contextmanager
def read_only(path: Path, hidden: str = "") -> Iterator[Path]:
    """A copy of a run that this process, root or not, may read, but for a file, but not write."""
    folder = Path(tempfile.mkdtemp())
    copy = folder / "run"
    shutil.copytree(path, copy)
    for file in copy.iterdir():
        file.chmod(0 if file.name == hidden else 0o444)
    copy.chmod(0o555)
    folder.chmod(0o755)
    user = os.geteuid()
    try:
        if user == 0:  # root may write everything
            os.seteuid(NOBODY)
        yield copy
    finally:
        os.seteuid(user)
        copy.chmod(0o755)
        shutil.rmtree(folder)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("memory_map", [True, False])
def test_a_read_only_run_that_was_killed_can_be_read(
    toy: ModuleType, broken: Path, memory_map: bool
) -> None:
    if not memory_map:  # as in a copy of what matters
        (broken / "run.db-shm").unlink()
    with read_only(broken) as path:
        before = content(path)
        with RunDirectory.open(path) as run:
            assert len(run.outcomes()) == 20
            assert [state.generation for state in run.states()] == [1]
        assert content(path) == before
        with (
            RunDirectory.open(path) as run,
            pytest.raises(GppruneError, match="may not be written: make it writable, or copy it"),
        ):
            evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
        assert content(path) == before
    assert toy.facts(resumed(toy, broken)) == unbroken(toy)


def test_a_read_only_run_that_ended_can_be_read(toy: ModuleType, finished: Path) -> None:
    with RunDirectory.open(finished) as run:
        expected = run.outcomes(), run.states()
    with read_only(finished) as path:
        before = content(path)
        with RunDirectory.open(path) as run:
            assert (run.outcomes(), run.states()) == expected
        assert content(path) == before
        with (
            RunDirectory.open(path) as run,
            pytest.raises(GppruneError, match="may not be written"),
        ):
            run.record(expected[0][0])


def test_a_read_only_run_that_is_damaged_is_told(finished: Path) -> None:
    whole = (finished / "run.db").read_bytes()
    (finished / "run.db").write_bytes(whole[: len(whole) // 2])
    with read_only(finished) as path, pytest.raises(GppruneError, match=r"run\.db cannot be used"):
        RunDirectory.open(path)


@pytest.mark.parametrize("name", ["settings.toml", "run.db"])
def test_a_file_that_may_not_be_read_is_told(finished: Path, name: str) -> None:
    with read_only(finished, hidden=name) as path, pytest.raises(GppruneError) as caught:
        RunDirectory.open(path)
    assert str(path / name) in str(caught.value)
    assert "restore" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE candidates SET text = 'mul(abs(W), Y)' WHERE number = 2",
        "UPDATE candidates SET key = '0123456789abcdef' WHERE number = 2",
    ],
)
def test_a_row_whose_text_is_not_its_keys_is_refused(
    toy: ModuleType, broken: Path, change: str
) -> None:
    with sqlite3.connect(broken / "run.db") as database:
        database.execute("DELETE FROM generations")  # or the key would be missed there
        database.execute(change)
    database.close()
    with RunDirectory.open(broken) as run:
        (text, key) = (run.outcomes()[1].text, run.outcomes()[1].key)
        with pytest.raises(GppruneError) as caught:
            run.outcomes(METRIC)
        assert f"{broken / 'run.db'} cannot be used: row 2 of its candidates" in str(caught.value)
        assert text in str(caught.value) and key in str(caught.value)
        with pytest.raises(GppruneError, match="row 2 of its candidates"):
            evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)


def test_a_generation_that_is_gone_is_missed(finished: Path, tmp_path: Path) -> None:
    path = shutil.copytree(finished, tmp_path / "copy")
    with sqlite3.connect(path / "run.db") as database:
        database.execute("DELETE FROM generations WHERE generation = 1")
    database.close()
    with pytest.raises(GppruneError, match="generation 1 is not there, but later ones are"):
        RunDirectory.open(path)


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o022, 0o002])
def test_a_run_directory_obeys_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        RunDirectory.create(tmp_path / "run", SearchSettings(), {}).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o777 & ~umask
    for file in (tmp_path / "run").iterdir():
        # SQLite gives its files no more than 0644
        assert stat.S_IMODE(file.stat().st_mode) in {0o666 & ~umask, 0o644 & ~umask}


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    with RunDirectory.create("~/run", SearchSettings(), {}) as run:
        assert run.path == home / "run"
    assert RunDirectory.open("~/run").path == home / "run"
    assert os.listdir(here) == [] and os.listdir(home) == ["run"]
    with pytest.raises(UsageError, match="~nobody-of-this-name"):
        RunDirectory.open("~nobody-of-this-name/run")


@pytest.mark.parametrize("name", ["a**b", "x*", "[ab]?", "50%#1", "a b'c", "-x"])
def test_a_path_may_hold_any_characters(toy: ModuleType, tmp_path: Path, name: str) -> None:
    beside = tmp_path / ".xyz.partial-abc"
    beside.mkdir()
    os.utime(beside, (0, 0))
    with RunDirectory.create(tmp_path / name, toy.SETTINGS, {}) as run:
        result = evolve(METRIC, toy.Words(), seeds=toy.SEEDS, run=run)
    with RunDirectory.open(tmp_path / name) as run:
        assert run.outcomes() == result.outcomes
    assert sorted(os.listdir(tmp_path)) == sorted([name, beside.name])
