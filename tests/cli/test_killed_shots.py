"""Pruning in shots that is killed at any moment goes on to the same bytes."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from threads import on_threads

from gpprune.cli import run as cli_run

DYING = Path(__file__).with_name("dying.py")
FLAGS = [
    *("--window-length", "16"),
    *("--calibration-samples", "2"),
    *("--synthetic-samples", "1"),
    *("--recover", "1"),
    *("--metric", "kron-obd"),
    *("--update", "refit"),
    *("--pattern", "model"),
    *("--sparsity", "0.6"),
    *("--shots", "8"),
    "--json",
]


@dataclass(frozen=True)
class Moment:
    """When a run is to die, and what it leaves.

    Attributes:
        how: what `dying.py` takes.
        died: of which signal.
        more: how many shots more are kept than before; None: it is left to chance.
        weights: whose weights lie there, by the shot's number from the last that is kept.
        partial: whether it leaves weights that are not whole, or have no name yet.
    """

    how: dict[str, Any]
    died: signal.Signals
    more: int | None = None
    weights: frozenset[int] = frozenset({0})
    partial: bool = False


def at(event: str, of: str, count: int = 1, **left: Any) -> Moment:
    how = {"event": event, "of": of, "count": count, "how": "kill"}
    return Moment(how, signal.SIGKILL, **left)


def torn(event: str, of: str, count: int = 1, **left: Any) -> Moment:
    """In the middle of the first large file that is written after an event."""
    how = {"event": event, "of": of, "count": count, "how": "tear"}
    return Moment(how, signal.SIGXFSZ, **left)


def by_chance(share: float) -> Moment:
    return Moment({"shots": 1, "share": share}, signal.SIGKILL)


ASIDE = "/gpprune-"  # where a shot's calibration puts hidden states, then curvature
NOTHING: frozenset[int] = frozenset()
DRAW = random.Random(8)
MOMENTS = {
    "in the first shot's calibration": at("tempfile.mkdtemp", ASIDE, more=0, weights=NOTHING),
    "as the first shot is written": torn(
        "tempfile.mkdtemp", ASIDE, more=0, weights=NOTHING, partial=True
    ),
    "before the record is": at("os.rename", r"/shots\.json ", more=0, weights=frozenset({1})),
    "in the next shot's calibration": at("tempfile.mkdtemp", ASIDE, 3, more=1),
    "before weights have their name": at(
        "os.rename", r"/shot-\d\.safetensors ", more=0, partial=True
    ),
    "as another shot is written": torn("tempfile.mkdtemp", ASIDE, more=0, partial=True),
    "before the weights before go": at(
        "os.remove", r"/shot-[1-9]\.safetensors", more=1, weights=frozenset({0, -1})
    ),
    **{f"by chance {turn}": by_chance(DRAW.uniform(0, 0.9)) for turn in (1, 2, 3)},
    # the first of these directories is a trial before the work
    "as the checkpoint is written": torn("tempfile.mkdtemp", r"/\.pruned\.partial-", 2),
    "before the checkpoint has its name": at("os.rename", "/pruned ", more=0),
    "before the shots are forgotten": at("os.remove", r"/shots\.json", more=0),
}


@pytest.fixture(scope="module")
def command(
    tiny_model_dir: Path, tiny_text: str, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    text = tmp_path_factory.mktemp("text") / "tiny.txt"
    text.write_text(tiny_text, encoding="utf-8")
    return ["prune", "--model", str(tiny_model_dir), "--calibration-text", str(text), *FLAGS]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Here and in what is started: two that wait for each other crawl beside a busy neighbour."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # what is killed leaves its temporary files behind
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    with on_threads(1):
        yield


def timeless(document: Any) -> Any:
    """A report without the seconds that things took."""
    if isinstance(document, dict):
        return {name: timeless(value) for name, value in document.items() if name != "seconds"}
    return [timeless(value) for value in document] if isinstance(document, list) else document


def contents(out: Path) -> dict[str, Any]:
    """Every file's bytes; of the record, what no clock has a part in."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in out.iterdir()}
    files["gpprune_recipe.json"] = timeless(json.loads(files["gpprune_recipe.json"]))
    return files


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_a_pruning_killed_at_any_moment_goes_on_to_the_same_bytes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = tmp_path / "unbroken" / "pruned"
    whole = [sys.executable, "-m", "gpprune", *command, "--out", str(unbroken)]
    done = subprocess.run(whole, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    printed, wanted = json.loads(done.stdout), contents(unbroken)
    assert len(printed["shots"]) == 8 and "model.safetensors" in wanted

    out, kept = tmp_path / "broken" / "pruned", tmp_path / "broken" / "pruned.shots"
    plan = {"shots": str(kept), "moments": [moment.how for moment in MOMENTS.values()]}
    program = [sys.executable, str(DYING), json.dumps(plan), *command, "--out", str(out)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    before, partial = 0, set()
    for (name, moment), line in zip(MOMENTS.items(), run.stdout.splitlines(), strict=True):
        left = json.loads(line)
        assert left["died"] == moment.died, (name, left, run.stderr)
        if moment.more is not None:
            files = [re.fullmatch(r"shot-(\d)\.safetensors", file) for file in left["files"]]
            weights = {int(file[1]) - left["shots"] for file in files if file}
            hidden = {file for file in left["files"] if file.startswith(".shot-")}
            assert left["shots"] == before + moment.more, (name, left)
            assert weights == moment.weights, (name, left)
            assert bool(hidden - partial) == moment.partial, (name, left)
        partial = {file for file in left["files"] if file.startswith(".")}
        before = left["shots"]
    assert before == 8

    assert contents(out) == wanted
    shutil.rmtree(out)
    capsys.readouterr()
    assert cli_run([*command, "--out", str(out)]) == 0  # what is still kept is all that is needed
    assert contents(out) == wanted
    again = json.loads(capsys.readouterr().out)
    assert timeless({**again, "out": printed["out"]}) == timeless(printed)
    assert not kept.exists()
