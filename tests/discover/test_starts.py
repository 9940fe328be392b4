"""Searches that start from formulas of their own beside the published ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts
from gpprune.gp import RunDirectory

OWN = "mul(pow(W, 1.7), sqrt(X))"
SMALL = gpprune.SearchSettings(population=30, offspring=4, generations=1, race_z=math.inf)


@pytest.fixture
def flags(tiny_model_dir: Path, text_file: Path) -> list[str]:
    return [
        *("--model", str(tiny_model_dir), "--text", str(text_file)),
        *("--calibration-text", str(text_file), "--dtype", "float32"),
        *("--windows", "3", "--window-length", "32", "--calibration-samples", "3"),
        *("--population", "4", "--generations", "0", "--rivals", "best", "--json"),
    ]


def origins(run_directory: Path) -> dict[str, str]:
    with RunDirectory.open(run_directory) as opened:
        return {outcome.text: outcome.origin for outcome in opened.outcomes()}


@pytest.fixture
def goal(tiny_model_dir: Path, text_file: Path) -> gpprune.MetricGoal:
    text = str(text_file)
    texts = Texts(text, text, windows=3, window_length=32, calibration_samples=3)
    return gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32", starts=(OWN, OWN))


def test_a_start_is_judged_in_generation_0_and_counts_as_evolved(goal: gpprune.MetricGoal) -> None:
    found = gpprune.discover(goal, settings=SMALL, rivals="best", winners=99)
    (start,) = (o for o in found.result.outcomes if o.origin == "start")
    assert start.generation == 0
    assert start.parsed(gpprune.METRIC) == goal.canonical(gpprune.metric(OWN))
    assert start.full
    assert any(w.formula.text == start.text for w in found.winners)
    # a published formula is a seed, whoever names it
    wanda = gpprune.published["wanda"].text
    again = gpprune.discover(
        replace(goal, starts=(wanda,)),
        settings=SMALL.replaced(generations=0, strategy="random", population=1),
    )
    assert not [o for o in again.result.outcomes if o.origin == "start"]


def test_a_command_starts_from_formulas_and_runs(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(["evolve", "metric", *flags, "--start", OWN, "--out", str(first)]) == 0
    document = json.loads(capsys.readouterr().out)
    best = next(f for f in document["formulas"] if f["name"] == "evolved 1")
    assert "start" in set(origins(first).values())
    more = ["--start", str(first), "--start", "mul(sqr(W), pow(X, 0.3))", "--out", str(second)]
    assert run(["evolve", "metric", *flags, *more]) == 0
    found = origins(second)
    assert found[best["formula"]] == "start"
    assert list(found.values()).count("start") == 2


def test_a_run_that_is_broken_off_in_its_first_generation_starts_from_the_same(
    goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    judged = 0

    def interrupts(event: gpprune.gp.SearchEvent) -> None:
        nonlocal judged
        judged += event.outcome is not None
        if judged == 3:
            raise KeyboardInterrupt

    whole = gpprune.discover(goal, out=tmp_path / "whole", settings=SMALL, rivals="best")
    with pytest.raises(KeyboardInterrupt):
        gpprune.discover(goal, out=tmp_path / "run", settings=SMALL, observer=interrupts)
    assert "start" not in origins(tmp_path / "run").values()
    again = gpprune.resume(tmp_path / "run", rivals="best")
    assert origins(tmp_path / "run") == origins(tmp_path / "whole")
    assert [f.formula.text for f in again.findings] == [f.formula.text for f in whole.findings]


def test_what_a_start_reads_is_measured(goal: gpprune.MetricGoal) -> None:
    assert not gpprune.primitives.STATISTICS["D"].searched
    reads = "mul(abs(W), div(1, D))"
    for changes in ({}, {"update": "least-squares", "draft": "recipe"}):
        found = gpprune.discover(
            replace(goal, starts=(reads,), **changes),
            settings=SMALL.replaced(generations=0),
            winners=99,
        )
        (start,) = (o for o in found.result.outcomes if o.origin == "start")
        assert start.full
        assert any(w.formula.text == start.text for w in found.winners)


@pytest.mark.parametrize(
    ("kind", "start", "said"),
    [
        ("metric", "mul(W", "an argument of mul is missing"),
        ("metric", "joint(abs(W), 0)", "joint"),
        ("joint", "abs(W)", "where Joint is needed"),
        ("joint", "joint(1, 0)", "is a constant: it orders nothing"),
        ("metric", "no/such/run", "no run directory 'no/such/run'"),
    ],
)
def test_a_wrong_start_is_said_before_anything_is_made(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    start: str,
    said: str,
) -> None:
    out = tmp_path / "run"
    assert run(["evolve", kind, *flags, "--start", start, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_run_of_another_language_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = tmp_path / "metrics"
    assert run(["evolve", "metric", *flags, "--start", OWN, "--out", str(metrics)]) == 0
    capsys.readouterr()
    out = tmp_path / "joint"
    assert run(["evolve", "joint", *flags, "--start", str(metrics), "--out", str(out)]) in (1, 2)
    error = capsys.readouterr().err
    assert str(metrics) in error.replace("\n", "")
    assert "Traceback" not in error
    assert not out.exists()
