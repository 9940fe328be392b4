"""A search that judges on several texts at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts, Workbench
from gpprune.errors import UsageError
from gpprune.evals import window_losses

FEW = gpprune.SearchSettings(population=12, offspring=6, generations=1)


@pytest.fixture
def files(tiny_text: str, tmp_path: Path) -> list[Path]:
    """Two texts of other words."""
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_text(tiny_text, encoding="utf-8")
    words = tiny_text.split(" ")
    second.write_text(" ".join(reversed(words)), encoding="utf-8")
    return [first, second]


@pytest.fixture
def goal(tiny_model_dir: Path, files: list[Path]) -> gpprune.MetricGoal:
    first, second = map(str, files)
    texts = Texts(first, first, 3, 32, 3, more_texts=(second,))
    return gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32")


def test_the_windows_of_texts_take_turns(goal: gpprune.MetricGoal, files: list[Path]) -> None:
    bench = Workbench(goal.model, goal.texts, dtype="float32")
    both = bench.windows("validation")
    for place, file in enumerate(files):
        assert torch.equal(both[place::2], bench.windows("validation", text=str(file)))
    assert len(both) == 6
    assert not torch.equal(both[0], both[1])


def test_a_search_goes_by_the_mean_of_all_and_reports_each(
    goal: gpprune.MetricGoal, files: list[Path]
) -> None:
    found = gpprune.discover(goal, settings=FEW)
    bench = Workbench(goal.model, goal.texts, dtype="float32")
    winner, recipe = found.winners[0], found.recipe
    assert recipe is not None
    gpprune.prune_model(bench.loaded.model, recipe, bench.calibration(), order="dense")
    texts = [str(file) for file in files]
    own = [window_losses(bench.loaded.model, bench.windows("validation", text=t)) for t in texts]
    assert winner.validation.mean == pytest.approx(float(torch.cat(own).mean()), rel=1e-5)
    tested = [window_losses(bench.loaded.model, bench.test_windows(text=t)).mean() for t in texts]
    by_text = winner.as_dict("pattern")["test_perplexity_by_text"]
    assert by_text == pytest.approx(
        {file.name: math.exp(loss) for file, loss in zip(files, tested, strict=True)}, rel=1e-5
    )
    assert winner.test.mean == pytest.approx(float(sum(tested) / 2), rel=1e-5)
    _, columns, rows, numbers = found.table
    assert numbers == ["validation", "test\nfirst.txt", "test\nsecond.txt"]
    assert len({*map(len, rows), len(columns)}) == 1
    best = found.result.archive.evolved(1)[0]
    assert best.fitness == pytest.approx(winner.validation.mean)


def test_a_run_on_two_texts_goes_on(
    goal: gpprune.MetricGoal, files: list[Path], tmp_path: Path
) -> None:
    found = gpprune.discover(goal, out=tmp_path / "run", settings=FEW)
    document = json.loads((tmp_path / "run" / "report.json").read_text())
    assert document["formulas"] == found.document()["formulas"]
    again = gpprune.resume(tmp_path / "run")
    assert again.document()["formulas"] == document["formulas"]
    (summary,) = gpprune.summarise([tmp_path / "run"])
    assert summary.test == pytest.approx(found.winners[0].test.figure)
    moved = files[1].rename(tmp_path / "moved.txt")
    with pytest.raises(UsageError, match=r"no text file .*second\.txt"):
        gpprune.resume(tmp_path / "run")
    with pytest.raises(UsageError, match=r"2 texts .*and 1 were given"):
        gpprune.resume(tmp_path / "run", texts=[str(moved)])
    with pytest.raises(UsageError, match="began with another text"):
        gpprune.resume(tmp_path / "run", texts=[str(moved), str(files[0])])
    now = [str(files[0]), str(moved)]
    assert gpprune.resume(tmp_path / "run", texts=now).result.stopped is None
    moved.write_text(moved.read_text().replace("river", "brook"))
    with pytest.raises(UsageError, match="began with another text"):
        gpprune.resume(tmp_path / "run", texts=now)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"more_texts": ("{0}",)}, "given twice"),
        ({"more_texts": ("{1}", "{1}")}, "given twice"),
        ({"more_texts": ("missing.txt",)}, "no text file 'missing.txt'"),
    ],
)
def test_texts_that_cannot_stand_together_are_refused(
    goal: gpprune.MetricGoal, files: list[Path], tmp_path: Path, changes: Any, says: str
) -> None:
    more = tuple(text.format(*files) for text in changes["more_texts"])
    texts = replace(goal.texts, more_texts=more)
    with pytest.raises(UsageError, match=says):
        gpprune.discover(replace(goal, texts=texts), out=tmp_path / "run", settings=FEW)
    assert not (tmp_path / "run").exists()


def test_tasks_stand_beside_one_text(goal: gpprune.MetricGoal, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'task:piqa' is of tasks"):
        gpprune.discover(replace(goal, loss="task:piqa"), out=tmp_path / "run", settings=FEW)


def test_the_command_line_takes_several(
    goal: gpprune.MetricGoal,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [flag for file in files for flag in ("--text", str(file))]
    few = ["--windows", "3", "--window-length", "32", "--calibration-samples", "3"]
    size = ["--population", "6", "--generations", "1", "--winners", "1", "--rivals", "best"]
    flags = [*texts, "--calibration-text", str(files[0]), *few, *size, "--dtype", "float32"]
    out = str(tmp_path / "run")
    assert run(["evolve", "metric", "--model", goal.model, *flags, "--out", out, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["formulas"]
    assert all([*row["test_perplexity_by_text"]] == ["first.txt", "second.txt"] for row in rows)
    assert run(["resume", out, "--text", str(files[0])]) == 2
    assert "2 texts" in capsys.readouterr().err
    assert run(["resume", out, *texts, "--generations", "2"]) == 0
    assert "second" in capsys.readouterr().out
