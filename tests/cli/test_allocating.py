"""Allocations on the command line: scored, shown, evolved, pruned by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gpprune.cli.main import run
from gpprune.primitives import ALLOCATIONS
from gpprune.prune import linear_layers, total_zeros

EVOLVED = "add(spread(depth, 0.2), mul(0.5, threshold(mul(abs(W), G))))"


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def zeros_of(directory: Path) -> tuple[int, int]:
    """Zeros and weights of a checkpoint's linear layers."""
    layers = linear_layers(AutoModelForCausalLM.from_pretrained(directory)).values()
    return (
        sum(int((layer.weight == 0).sum()) for layer in layers),
        sum(layer.weight.numel() for layer in layers),
    )


def test_score_allocations_has_every_published_one_at_every_sparsity(
    small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", "allocations", *small, *judged, "--sparsity", "0.4,0.6", "--json"]) == 0
    rows = printed(capsys)
    names = [*ALLOCATIONS, "besa"]
    assert [row["name"] for row in rows] == ["dense", *names, *names]
    assert {row["unit"] for row in rows[1:]} == {"layer", "block"}
    nll = {(row["name"], row["sparsity"]): row["nll"] for row in rows}
    assert nll["uniform", 0.6] > nll["uniform", 0.4] > nll["dense", 0.0]  # type: ignore[operator]
    assert len({nll[name, 0.6] for name in names}) > 4


@pytest.mark.parametrize("metric", ["ria", "sparsegpt"])
def test_score_allocations_works_with_other_metrics(
    metric: str, small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small, *judged, "--metric", metric, "--sparsity", "0.5"]
    assert run(["score", "allocations", "owl(3,0.1)", EVOLVED, *flags]) == 0
    assert "owl(3,0.1)" in capsys.readouterr().out


def test_uniform_scores_as_the_metric_alone(
    small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", "metrics", "wanda", *small, *judged, "--json"]) == 0
    alone = printed(capsys)[1]["nll"]
    flags = [*small, *judged, "--sparsity", "0.5", "--json"]
    for order in ("dense", "sequential"):
        command = ["score", "allocations", "uniform", *flags, "--order", order]
        assert run(command) == 0
        if order == "dense":
            assert printed(capsys)[1]["nll"] == alone


def test_allocate_meets_the_budget_and_draws(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "pictures" / "allocations"
    command = ["allocate", "uniform", "owl", "atp(0.3)", "W:(ABS)-(VAR)-(TANH)-(9)"]
    command += [f"evolved={EVOLVED}"]
    command += [*small, "--sparsity", "0.65"]
    assert run([*command, "--plot", str(picture), "--json"]) == 0
    rows = printed(capsys)
    assert len(rows) == 5
    assert len({row["zeros"] for row in rows}) == 1
    assert picture.with_suffix(".png").is_file()
    assert [row["name"] for row in rows][-1] == "evolved"
    drawn = picture.with_suffix(".svg").read_text(encoding="utf-8")
    assert "atp(0.3)" in drawn
    assert "threshold" not in drawn
    assert run(command) == 0
    shown = capsys.readouterr().out
    assert "all" in shown
    assert shown.count("65.0") >= 5


def test_prune_by_an_allocation_has_the_exact_number_of_zeros(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, flags in {
        "evolved": ["--allocation", EVOLVED],
        "block": ["--allocation", EVOLVED, "--unit", "block", "--pattern", "layer"],
        "owl": ["--allocation", "owl"],
        "besa": ["--allocation", "besa"],
        "mixed": ["--allocation", "atp(0.5)", "--pattern", "N:8"],
    }.items():
        out = tmp_path / name
        command = ["prune", *small, *flags, "--sparsity", "0.5", "--out", str(out)]
        assert run(command) == 0, capsys.readouterr().err
        zeros, weights = zeros_of(out)
        assert zeros == total_zeros(0.5, weights)
        recipe = json.loads((out / "gpprune_recipe.json").read_text())["recipe"]
        assert recipe["allocation"] == flags[1]
        assert recipe["unit"] == ("block" if name in ("block", "owl", "mixed") else "layer")


def test_a_mixed_pattern_prunes_each_group_of_a_layer_alike(
    small: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "mixed"
    flags = ["--allocation", "atp(0.5)", "--unit", "layer", "--pattern", "N:8"]
    assert run(["prune", *small, *flags, "--sparsity", "0.5", "--out", str(out)]) == 0
    layers = linear_layers(AutoModelForCausalLM.from_pretrained(out)).values()
    counts = [{int(n) for n in (layer.weight.reshape(-1, 8) == 0).sum(1)} for layer in layers]
    assert all(len(found) == 1 for found in counts)
    assert len(set().union(*counts)) > 1


@pytest.mark.parametrize("goal", ["allocation", "joint"])
def test_evolve_repeats_resumes_and_hands_on_a_recipe(
    goal: str,
    small: list[str],
    judged: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [*small, *judged, "--generations", "2", "--population", "16", "--sparsity", "0.6"]
    documents = []
    for name in ("a", "b"):
        assert run(["evolve", goal, *flags, "--json", "--out", str(tmp_path / name)]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["formulas"] == documents[1]["formulas"]
    best = next(row for row in documents[0]["formulas"] if row["name"] == "evolved 1")
    if goal == "allocation":
        names = [row["name"] for row in documents[0]["formulas"]]
        assert any(name.startswith("atp(") for name in names)
        assert set(ALLOCATIONS) - {"atp"} < set(names)

    assert run(["resume", str(tmp_path / "a"), "--generations", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generations"] == 3

    recipe = tmp_path / "b" / "recipe.json"
    out = tmp_path / "pruned"
    assert run(["prune", *small, "--recipe", str(recipe), "--out", str(out)]) == 0
    zeros, weights = zeros_of(out)
    assert zeros == total_zeros(0.6, weights)
    assert json.loads(recipe.read_text())["allocation"] in best["formula"]

    capsys.readouterr()
    assert run(["simplify", str(tmp_path / "b")]) == 0
    assert best["formula"] in capsys.readouterr().out


def test_report_compares_runs_and_scores_take_a_run(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small, *judged, "--generations", "1", "--population", "12"]
    runs = []
    for strategy in ("evolution", "random"):
        runs.append(str(tmp_path / strategy))
        command = ["evolve", "allocation", *flags, "--strategy", strategy, "--out", runs[-1]]
        assert run(command) == 0
    capsys.readouterr()
    assert run(["report", *runs, "--json", "--plot", str(tmp_path / "search")]) == 0
    rows = printed(capsys)
    assert [row["strategy"] for row in rows] == ["evolution", "random"]
    assert all(row["validation_perplexity"] > 1 for row in rows)  # type: ignore[operator]
    assert all(row["candidates"] == rows[0]["candidates"] for row in rows)
    assert "evolution" in (tmp_path / "search.svg").read_text(encoding="utf-8")
    assert run(["score", "allocations", runs[0], *small, *judged, "--json"]) == 0
    assert printed(capsys)[1]["name"] == "evolution"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["score", "allocations", "owel"], "owel"),
        (["score", "allocations", "depth"], "spread(depth, 0.1)"),
        (["score", "allocations", "owl(1,2,3)"], "owl(1,2,3)"),
        (["score", "allocations", "W:(GRAM)-(VAR)-(SIN)-(7)"], "GRAM"),
        (["score", "allocations", "--metric", "nosuch"], "nosuch"),
        (["score", "allocations", "--sparsity", "0.5,x"], "'x'"),
        (["score", "allocations", "--unit", "head"], "head"),
        (["allocate", "--sparsity", "1.5"], "1.5"),
        (["prune", "--allocation", "spread(S, 1)", "--out", "x"], "Elements"),
        (["report", "nosuchrun"], "nosuchrun"),
        (["simplify", "threshold(S)"], "threshold"),
    ],
)
def test_bad_input_is_one_sentence(
    command: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(command) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_the_report_may_hold_the_best_published_one_alone(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small, *judged, "--generations", "0", "--population", "12", "--json"]
    rows = {}
    for which in ("all", "best"):
        command = ["evolve", "allocation", *flags, "--rivals", which]
        assert run([*command, "--out", str(tmp_path / which)]) == 0
        found = json.loads(capsys.readouterr().out)["formulas"]
        rows[which] = [row for row in found if row["origin"].startswith("published")]
    best = min(rows["all"], key=lambda row: row["validation_perplexity"])
    assert rows["best"] == [best]
