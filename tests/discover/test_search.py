"""A whole search in one call, from Python: with and without a run directory."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gpprune
from gpprune.discover import Texts
from gpprune.discover.rivals import as_strict
from gpprune.errors import Unfit, UsageError
from gpprune.evals import LOSSES, NEXT_TOKEN
from gpprune.primitives import METRICS, Published
from gpprune.prune import linear_layers

FEW = gpprune.SearchSettings(population=16, offspring=8, generations=1)


@pytest.fixture
def text(tiny_text: str, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture
def goal(tiny_model_dir: Path, text: Path) -> gpprune.MetricGoal:
    texts = Texts(str(text), str(text), windows=3, window_length=32, calibration_samples=3)
    return gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32")


def found_by(discovery: gpprune.Discovery) -> list[tuple[str, str, float, float]]:
    return [
        (f.name, f.formula.text, f.validation.figure, f.test.figure) for f in discovery.findings
    ]


def test_five_lines_discover_without_a_run_directory(tiny_model_dir: Path, text: Path) -> None:
    code = f"""
import gpprune
texts = gpprune.Texts({str(text)!r}, {str(text)!r}, windows=3, window_length=32)
goal = gpprune.MetricGoal(texts, {str(tiny_model_dir)!r}, dtype="float32")
found = gpprune.discover(goal, settings=gpprune.SearchSettings(population=6, generations=1))
print([(w.formula.text, w.test.figure) for w in found.winners], found.recipe.metric)
"""
    before = sorted(os.listdir(text.parent))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=text.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "W" in done.stdout
    assert sorted(os.listdir(text.parent)) == before


def test_the_room_is_called_again_and_again(goal: gpprune.MetricGoal) -> None:
    first = gpprune.discover(goal, settings=FEW, rivals="best")
    again = gpprune.discover(goal, settings=FEW, rivals="best")
    assert found_by(first) == found_by(again)
    assert len(first.rivals) == 1
    assert all(winner.evolved for winner in first.winners)
    assert first.recipe is not None and first.recipe.metric == first.winners[0].formula.text


def test_a_run_directory_holds_what_was_found(goal: gpprune.MetricGoal, tmp_path: Path) -> None:
    without = gpprune.discover(goal, settings=FEW)
    labels: list[str] = []
    events: list[int] = []
    kept = gpprune.discover(
        goal,
        out=tmp_path / "run",
        settings=FEW,
        progress=lambda label, done, total: labels.append(label),
        observer=lambda event: events.append(event.evaluated),
    )
    assert found_by(kept) == found_by(without)
    assert {"calibrating", "judging on test text"} <= set(labels)
    assert events[-1] == kept.result.evaluated
    document = json.loads((tmp_path / "run" / "report.json").read_text())
    assert document["formulas"] == kept.document()["formulas"]
    recipe = gpprune.Recipe.read(tmp_path / "run" / "recipe.json")
    assert recipe == kept.recipe
    longer = gpprune.resume(tmp_path / "run", generations=2)
    assert longer.result.generations == 2
    assert longer.result.evaluated > kept.result.evaluated
    (summary,) = gpprune.summarise([tmp_path / "run"])
    assert summary.candidates == longer.result.evaluated
    assert summary.test == pytest.approx(longer.winners[0].test.figure)


@pytest.mark.parametrize("kind", [gpprune.AllocationGoal, gpprune.JointGoal])
def test_allocations_and_pairs_are_discovered_too(
    kind: Any, goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    other = kind(goal.texts, goal.model, dtype="float32")
    found = gpprune.discover(other, settings=FEW, out=tmp_path / "run")
    assert found.winners
    assert found.recipe is not None and found.recipe.allocation != "uniform"
    assert {rival.setting for rival in found.rivals} <= {"row", "layer", "block"}


def test_a_model_that_is_loaded_already_serves(
    goal: gpprune.MetricGoal, tiny_model_dir: Path
) -> None:
    loaded = gpprune.load_model(str(tiny_model_dir))
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    found = gpprune.discover(goal, settings=FEW, loaded=loaded)
    assert found_by(found) == found_by(gpprune.discover(goal, settings=FEW))
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# What is judged together must be judged on the same


def _copied(goal: gpprune.MetricGoal, text: Path, folder: Path) -> gpprune.MetricGoal:
    """The goal on a model and a text of its own."""
    shutil.copytree(goal.model, folder / "model")
    shutil.copy(text, folder / "own.txt")
    texts = replace(goal.texts, text=str(folder / "own.txt"))
    return replace(goal, model=str(folder / "model"), texts=texts)


def _change_weights(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    weights[name] = weights[name] * 1.01
    save_file(weights, file, metadata={"format": "pt"})


def _change_text(folder: Path) -> None:
    file = folder / "own.txt"
    file.write_text(file.read_text().replace("river", "brook"))


def _change_configuration(folder: Path) -> None:
    file = folder / "model" / "config.json"
    document = json.loads(file.read_text())
    document["rms_norm_eps"] = 1.0
    file.write_text(json.dumps(document))


def _change_tokenizer(folder: Path) -> None:
    file = folder / "model" / "tokenizer.json"
    document = json.loads(file.read_text())
    document["model"]["merges"] = document["model"]["merges"][:-1]
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_change_weights, "model"),
        (_change_configuration, "configuration of the model"),
        (_change_text, "text"),
        (_change_tokenizer, "tokenizer"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(
    goal: gpprune.MetricGoal, text: Path, tmp_path: Path, change: Any, what: str
) -> None:
    own = _copied(goal, text, tmp_path)
    gpprune.discover(own, out=tmp_path / "run", settings=FEW)
    assert gpprune.resume(tmp_path / "run").result.stopped is None
    change(tmp_path)
    with pytest.raises(UsageError, match=f"began with another {what}"):
        gpprune.resume(tmp_path / "run")


def test_a_run_of_relative_paths_goes_on_from_any_directory(
    goal: gpprune.MetricGoal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = _copied(goal, text, tmp_path)
    monkeypatch.chdir(tmp_path)
    texts = replace(own.texts, text="own.txt")
    gpprune.discover(replace(own, model="model", texts=texts), out="run", settings=FEW)
    monkeypatch.chdir("/")
    assert gpprune.resume(tmp_path / "run").result.stopped is None


def test_a_run_goes_on_where_model_and_text_have_moved_to(
    goal: gpprune.MetricGoal, text: Path, tmp_path: Path
) -> None:
    own = _copied(goal, text, tmp_path)
    before = gpprune.discover(own, out=tmp_path / "run", settings=FEW)
    (tmp_path / "model").rename(tmp_path / "moved")
    (tmp_path / "own.txt").rename(tmp_path / "moved.txt")
    with pytest.raises(UsageError, match="no text file"):
        gpprune.resume(tmp_path / "run")
    moved = {"model": str(tmp_path / "moved"), "texts": [str(tmp_path / "moved.txt")]}
    assert found_by(gpprune.resume(tmp_path / "run", **moved)) == found_by(before)
    with pytest.raises(UsageError, match="began with another text"):
        gpprune.resume(tmp_path / "run", **{**moved, "texts": ["wikitext2"]})


def test_one_file_named_in_two_ways_is_one_file(
    goal: gpprune.MetricGoal, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    texts = replace(goal.texts, text="text.txt", calibration_text="./text.txt")
    gpprune.discover(replace(goal, texts=texts), out=tmp_path / "run", settings=FEW)
    assert gpprune.resume(tmp_path / "run").result.stopped is None


def test_a_folder_called_like_a_source_of_models_is_found_from_anywhere(
    goal: gpprune.MetricGoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(goal.model, tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    gpprune.discover(replace(goal, model="hub"), out="run", settings=FEW)
    monkeypatch.chdir("/")
    assert gpprune.resume(tmp_path / "run").result.stopped is None


@pytest.mark.parametrize("kind", [gpprune.AllocationGoal, gpprune.JointGoal])
def test_a_search_that_cannot_begin_leaves_no_run(
    kind: Any, goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'bogus'"):
        gpprune.discover(kind(goal.texts, goal.model, unit="bogus"), out=tmp_path / "run")
    dead = gpprune.AllocationGoal(goal.texts, goal.model, metric="abs(1)")
    with pytest.raises(Unfit, match="no terminal"):
        gpprune.discover(dead, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_of_another_name_is_refused(
    goal: gpprune.MetricGoal, tiny_model_dir: Path
) -> None:
    loaded = gpprune.load_model(str(tiny_model_dir))
    with pytest.raises(UsageError, match="the goal's 'smollm2'"):
        gpprune.discover(replace(goal, model="smollm2"), loaded=loaded)


# What a rival does


def test_a_rival_that_cannot_prune_does_not_cost_the_report(
    goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    with METRICS.including(Published("dead", "mul(0, W)", "of my own")):
        found = gpprune.discover(goal, out=tmp_path / "run", settings=FEW)
    figures = {finding.name: finding.test.figure for finding in found.findings}
    assert math.isinf(figures["dead"])
    assert math.isfinite(figures["wanda"])
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["formulas"]
    assert {row["name"]: row["test_perplexity"] for row in rows}["dead"] is None


def test_a_loss_that_is_no_number_serves_no_rival_best(goal: gpprune.MetricGoal) -> None:
    def on(model: Any, dense: Any) -> Any:
        measure = NEXT_TOKEN.on(model, dense)
        layer = next(iter(linear_layers(model).values()))

        def odd(window: torch.Tensor) -> float:
            zeros = (layer.weight == 0).sum(1)
            rows = bool((zeros == zeros[0]).all()) and int(zeros[0]) > 0
            return math.nan if rows else measure(window)

        return odd

    with LOSSES.including(replace(NEXT_TOKEN, name="odd", on=on)):
        found = gpprune.discover(replace(goal, loss="odd", pattern="layer"), settings=FEW)
    assert {rival.setting for rival in found.rivals} == {"layer"}
    assert all(math.isfinite(rival.test.mean) for rival in found.rivals)


def test_the_room_is_one_thing_whenever_it_is_asked_for() -> None:
    code = """
import inspect, pickle, gpprune
first, second = gpprune.discover, gpprune.discover
assert first is second is pickle.loads(pickle.dumps(first))
assert list(inspect.signature(first).parameters)[0] == "goal"
assert gpprune.discover.describe("ria").formula == gpprune.published["ria"]
assert gpprune.prune.prune_model is gpprune.prune_model
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# Rivals are as constrained as the search


@pytest.mark.parametrize(
    ("pattern", "wanted", "strict"),
    [
        ("row", "2:4", False),
        ("layer", "2:4", False),
        ("2:4", "2:4", True),
        ("row", "layer", True),
        ("layer", "layer", True),
        ("row", "row", True),
        ("layer", "row", True),
        ("rows:16", "layer", True),
        ("layer", "rows:16", True),
        ("row", "N:8", False),
        ("2:4", "N:8", True),
    ],
)
def test_strictness(pattern: str, wanted: str, strict: bool) -> None:
    assert as_strict(pattern, wanted, (64, 96)) == strict


def test_rivals_of_a_2_4_search_are_2_4(goal: gpprune.MetricGoal) -> None:
    found = gpprune.discover(replace(goal, pattern="2:4"), settings=FEW)
    assert found.rivals
    assert {finding.setting for finding in found.findings} == {"2:4"}
