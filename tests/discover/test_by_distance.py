"""A search that judges pruned models by how far they are from the dense one."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts, Workbench
from gpprune.evals import LOSSES, evaluate

FEW = gpprune.SearchSettings(population=12, offspring=6, generations=1)


@pytest.mark.parametrize("loss", ["kl", "reconstruction"])
def test_a_search_goes_by_the_distance(tiny_model_dir: Path, text_file: Path, loss: str) -> None:
    texts = Texts(str(text_file), str(text_file), 3, 32, 3)
    goal = gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32", loss=loss)
    found = gpprune.discover(goal, settings=FEW)
    bench = Workbench(goal.model, goal.texts, dtype="float32")
    dense = copy.deepcopy(bench.loaded.model)
    assert found.recipe is not None
    gpprune.prune_model(bench.loaded.model, found.recipe, bench.calibration(), order="dense")
    best = found.winners[0]
    for split, judged in (("validation", best.validation), ("test", best.test)):
        tokens = bench.windows(split) if split == "validation" else bench.test_windows()
        own = evaluate(bench.loaded.model, tokens, LOSSES[loss], dense=dense)
        assert judged.mean == pytest.approx(own.mean, rel=1e-3)
        assert judged.as_dict()[loss] == judged.mean > 1e-3


@pytest.mark.parametrize("loss", ["kl", "reconstruction"])
def test_the_command_line_speaks_of_the_distance(
    tiny_model_dir: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    loss: str,
) -> None:
    read = ["--text", str(text_file), "--calibration-text", str(text_file)]
    few = [*read, "--windows", "3", "--window-length", "32", "--calibration-samples", "3"]
    size = ["--population", "6", "--generations", "1", "--winners", "1", "--rivals", "best"]
    flags = ["--model", str(tiny_model_dir), *few, "--loss", loss]
    out = str(tmp_path / "run")
    assert run(["evolve", "metric", *flags, *size, "--out", out]) == 0
    assert loss in capsys.readouterr().out
    assert run(["report", out, "--html", str(tmp_path / "page"), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["loss"] == loss
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"validation {loss}" in page
    assert run(["score", "metrics", "wanda", "magnitude", *flags, "--json"]) == 0
    dense, *others = [row[loss] for row in json.loads(capsys.readouterr().out)]
    assert abs(dense) < 1e-2 < min(others)
    assert run(["eval", "--model", str(tiny_model_dir), "--loss", loss]) == 2
    assert "compares a pruned model with the dense one" in capsys.readouterr().err
