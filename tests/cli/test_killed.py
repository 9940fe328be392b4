"""A killed, interrupted or terminated search loses nothing and resumes to the same end."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

FLAGS = [
    *("--window-length", "32"),
    *("--calibration-samples", "4"),
    *("--windows", "4"),
    *("--generations", "3"),
    *("--population", "8"),
    *("--seed", "3"),
    "--json",
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gpprune", *arguments]


@pytest.fixture(scope="module")
def problem(
    tiny_model_dir: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    text = tmp_path_factory.mktemp("text") / "tiny.txt"
    text.write_text(tiny_text, encoding="utf-8")
    named = ["--model", tiny_model_dir, "--text", text, "--calibration-text", text]
    return ["evolve", "metric", *map(str, named), *FLAGS]


@pytest.fixture(scope="module")
def unbroken(problem: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    return result(subprocess.run(command(*problem, "--out", str(out)), capture_output=True))


def result(done: subprocess.CompletedProcess[bytes]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr.decode()
    document: dict[str, object] = json.loads(done.stdout)
    return {key: document[key] for key in ("formulas", "evaluated", "archive_hits")}


def candidates(out: Path) -> int:
    if not (out / "run.db").exists():
        return 0
    with closing(sqlite3.connect(out / "run.db")) as database:
        return int(database.execute("SELECT count(*) FROM candidates").fetchone()[0])


def broken_off(problem: list[str], out: Path, after: int, how: signal.Signals) -> int:
    """Start a search, send it a signal once it has judged so many candidates."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(*problem, "--out", str(out)), **quiet) as process:  # type: ignore[call-overload]
        while candidates(out) < after:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, how)
        return int(process.wait())


@pytest.mark.parametrize(
    "after",
    [
        *(pytest.param(after, marks=pytest.mark.slow) for after in (1, 7, 15, 33)),
        24,
    ],
)
def test_a_killed_search_resumes_to_the_same_end(
    problem: list[str], unbroken: dict[str, object], tmp_path: Path, after: int
) -> None:
    out = tmp_path / "run"
    assert broken_off(problem, out, after, signal.SIGKILL) == -signal.SIGKILL
    resumed = subprocess.run(command("resume", str(out), "--json"), capture_output=True)
    assert result(resumed) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_at_random_moments_change_nothing(
    problem: list[str], tmp_path: Path, workers: int
) -> None:
    longer = [*problem, "--generations", "30", "--workers", str(workers)]
    whole = subprocess.run(command(*longer, "--out", str(tmp_path / "whole")), capture_output=True)
    draw, out = random.Random(workers), tmp_path / "run"
    begin = command(*longer, "--out", str(out))
    go_on = command("resume", str(out), "--json", "--workers", str(workers))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    judged = [0]
    for _ in range(20):
        with subprocess.Popen(go_on if out.exists() else begin, **quiet) as process:  # type: ignore[call-overload]
            early = draw.random() < 0.3  # while libraries load, or the model is measured
            ends = time.monotonic() + (draw.random() * 10 if early else 120)
            while process.poll() is None and candidates(out) == judged[-1]:
                if time.monotonic() > ends:
                    break
                time.sleep(0.002)
            time.sleep(draw.random() * 0.1)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        judged.append(candidates(out))
    assert len(set(judged)) > 10, judged
    assert result(subprocess.run(go_on, capture_output=True)) == result(whole)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_search_says_so_with_its_exit_code(
    problem: list[str], tmp_path: Path, how: signal.Signals, code: int
) -> None:
    assert broken_off(problem, tmp_path / "run", 3, how) == code


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("loaded", ["gpprune.errors", "numpy", "torch"])
def test_an_interrupt_while_libraries_load_is_one_sentence(
    how: signal.Signals, code: int, loaded: str
) -> None:
    # Python tells of each import that is done: a clock would hit its own start on a slow machine
    program = [sys.executable, "-X", "importtime", "-m", "gpprune", "simplify", "wanda"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, bufsize=0, **pipes) as process:  # read no further than a line
        assert process.stderr is not None
        assert any(line.split(b"|")[-1].strip() == loaded.encode() for line in process.stderr)
        process.send_signal(how)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in told
    sentences = [line for line in told.splitlines() if not line.startswith(b"import time:")]
    assert sentences == [b"gpprune: interrupted" if code == 130 else b"gpprune: terminated"]


def test_an_interrupt_in_the_middle_of_a_dataclass_has_its_exit_code(tmp_path: Path) -> None:
    # a dataclass is made by code in a string, which Python's own count of interrupts goes by
    (tmp_path / "interrupted.py").write_text(
        "import gpprune.cli\n"
        "from gpprune.__main__ import main\n"
        "kill = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)'\n"
        "gpprune.cli.run = lambda: exec(kill)\n"
        "main()\n"
    )
    program = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, b"gpprune: interrupted\n")
