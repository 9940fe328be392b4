"""Comparisons and shares of sparsity from Python: what the commands print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.discover import Contender, Texts, allocation_contenders, compare_recipes
from gpprune.discover.plots import sharing_figure
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, Loss
from gpprune.prune import total_zeros


@pytest.fixture
def how(tiny_model_dir: Path, text_file: Path) -> dict[str, Any]:
    """On what is judged: the tiny model and text, in little."""
    texts = Texts(str(text_file), str(text_file), 3, 32, 4)
    return {"model": str(tiny_model_dir), "texts": texts, "dtype": "float32"}


@pytest.fixture
def printed(
    tiny_model_dir: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    def call(*arguments: str) -> Any:
        named = ["--model", str(tiny_model_dir), "--text", str(text_file)]
        named += ["--calibration-text", str(text_file), "--windows", "3", "--window-length", "32"]
        named += ["--calibration-samples", "4", "--dtype", "float32", "--json"]
        assert run([*arguments, *named]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_metrics_are_compared_as_the_command_does(
    how: dict[str, Any], printed: Callable[..., Any]
) -> None:
    found = gpprune.compare(["wanda", "mul(W, W)"], sparsity=[0.3, 0.5], **how)
    rows = without_seconds([row.as_dict() for row in found.rows])
    command = ["score", "metrics", "wanda", "mul(W, W)", "--sparsity", "0.3,0.5"]
    assert rows == without_seconds(printed(*command))
    assert found.dense.evaluation.figure < found.row("wanda", 0.5).evaluation.figure
    with pytest.raises(UsageError, match=r"'ria' was not compared at 0\.5"):
        found.row("ria", 0.5)


def test_allocations_are_compared_as_the_command_does(
    how: dict[str, Any], printed: Callable[..., Any]
) -> None:
    names = ["uniform", "owl(3,0.1)", "besa", "mine=spread(depth, 0.2)"]
    found = gpprune.compare("ria", allocations=names, sparsity=0.5, **how)
    rows = without_seconds([row.as_dict() for row in found.rows])
    assert rows == without_seconds(
        printed("score", "allocations", *names, "--metric", "ria", "--sparsity", "0.5")
    )
    assert [row["name"] for row in rows] == ["dense", "uniform", "owl(3,0.1)", "besa", "mine"]
    assert rows[3]["formula"] is None


def test_a_loaded_model_is_compared_and_left_alone(how: dict[str, Any]) -> None:
    loaded = gpprune.load_model(how["model"])
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for order in ("dense", "sequential"):
        ours = gpprune.compare(["wanda"], **{**how, "model": loaded}, order=order)
        named = gpprune.compare(["wanda"], **how, order=order)
        assert [row.evaluation.mean for row in ours.rows] == [
            row.evaluation.mean for row in named.rows
        ]
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_n_m_pattern_needs_no_sparsity(how: dict[str, Any]) -> None:
    found = gpprune.compare(["wanda"], pattern="2:4", **how)
    assert found.row("wanda", 0.5).recipe is not None


def test_any_recipes_stand_side_by_side(how: dict[str, Any]) -> None:
    recipes = {
        "rows": gpprune.Recipe(metric="wanda", sparsity=0.5),
        "layers, deeper": gpprune.Recipe(allocation="atp(0.2)", pattern="layer", sparsity=0.5),
    }
    found = compare_recipes([Contender(*item) for item in recipes.items()], **how)
    assert [row.name for row in found.rows] == ["dense", *recipes]


@pytest.mark.parametrize("order", ["dense", "sequential"])
@pytest.mark.parametrize("own", [{"synthetic_samples": 3}, {"shots": 2}, {"recover": 1}])
def test_what_a_recipe_measures_of_its_own_is_not_left_out(
    own: dict[str, int], order: str, how: dict[str, Any]
) -> None:
    plain = gpprune.Recipe(metric="wanda", sparsity=0.5, update="least-squares")
    recipes = {"plain": plain, "own": plain.model_copy(update=own)}
    contenders = [Contender(*item) for item in recipes.items()]
    found = compare_recipes(contenders, order=order, **how)
    by_itself = compare_recipes(contenders[1:], order=order, **how)
    assert found.rows[2].evaluation.mean == by_itself.rows[1].evaluation.mean
    assert found.rows[2].evaluation.mean != found.rows[1].evaluation.mean


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"metrics": ["nosuch(W)"]}, "unknown name 'nosuch'"),
        ({"metrics": ["wanda"], "sparsity": 1.0}, "1.0 lies outside"),
        ({"metrics": ["wanda", "ria"], "allocations": []}, "under one metric, not 2"),
        ({"metrics": ["wanda"], "order": "random"}, "no order 'random'"),
        ({"metrics": ["wanda"], "loss": "beauty"}, "no loss 'beauty'"),
        ({"metrics": ["wanda"], "update": "magic"}, "no weight update 'magic'"),
        ({"metrics": ["wanda"], "split": "training"}, "no split 'training'"),
    ],
)
def test_wrong_settings_are_said(how: dict[str, Any], call: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        gpprune.compare(**call, **how)


def test_shares_meet_the_budget_and_draw(
    how: dict[str, Any], printed: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["uniform", "atp(0.3)", "besa"]
    found = gpprune.share_out(names, model=how["model"], texts=how["texts"], sparsity=0.65)
    for share in found.shares:
        assert sum(share.zeros) == total_zeros(0.65, sum(found.sizes))
        assert found.whole(share) == pytest.approx(0.65, abs=1e-4)
    rising = found.block_sparsities(found.shares[1])
    assert list(rising.values()) == sorted(rising.values())
    texts = how["texts"]
    command = ["allocate", *names, "--model", how["model"], "--sparsity", "0.65", "--json"]
    command += ["--calibration-text", texts.calibration_text, "--window-length", "32"]
    assert run([*command, "--calibration-samples", "4"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dicts()))
    assert sharing_figure(found).axes


def test_a_run_is_named_by_its_directory(how: dict[str, Any], tmp_path: Path) -> None:
    goal = gpprune.AllocationGoal(how["texts"], how["model"], 0.5, dtype="float32")
    settings = gpprune.SearchSettings(population=12, offspring=8, generations=1)
    found = gpprune.discover(goal, out=tmp_path / "mine", settings=settings, rivals="best")
    (contender,) = allocation_contenders([str(tmp_path / "mine")], sparsity=0.5)
    assert contender.name == "mine"
    assert contender.recipe.allocation == found.winners[0].formula.text
    metric = gpprune.MetricGoal(how["texts"], how["model"], 0.5, dtype="float32")
    gpprune.discover(metric, out=tmp_path / "metric", settings=settings, rivals="best")
    with pytest.raises(UsageError, match="searched for no allocation"):
        allocation_contenders([str(tmp_path / "metric")], sparsity=0.5)


def test_runs_that_are_called_alike_keep_apart(how: dict[str, Any], tmp_path: Path) -> None:
    goal = gpprune.AllocationGoal(how["texts"], how["model"], 0.5, dtype="float32")
    runs = []
    for seed, folder in enumerate(("a", "b")):
        settings = gpprune.SearchSettings(population=12, offspring=8, generations=1, seed=seed)
        run_ = tmp_path / folder / "run"
        gpprune.discover(goal, out=run_, settings=settings, rivals="best")
        runs.append(str(run_))
    first, second = allocation_contenders(iter(runs), sparsity=0.5)
    assert (first.name, second.name) == ("run", runs[1])
    found = gpprune.compare(allocations=iter(runs), sparsity=[0.4, 0.5], **how)
    assert [row.name for row in found.rows] == ["dense", *("run", runs[1]) * 2]
    with pytest.raises(UsageError, match="2 different recipes are called 'x'"):
        gpprune.compare(allocations=["x=atp(0.1)", "x=atp(0.2)"], **how)


def test_the_sequential_order_is_judged_as_the_dense_one(how: dict[str, Any]) -> None:
    """Magnitude reads no statistics, so that the order cannot matter."""
    found_by_order = [
        gpprune.compare(["magnitude"], **{**how, "dtype": "bfloat16"}, order=order)
        for order in ("dense", "sequential", "true-sequential")
    ]
    assert len({found.rows[1].evaluation.mean for found in found_by_order}) == 1


def test_a_loss_that_compares_models_has_the_dense_one_for_all_rows(how: dict[str, Any]) -> None:
    def on(model: Any, dense: Any) -> Any:
        def difference(window: torch.Tensor) -> float:
            with torch.no_grad():
                ours, theirs = (m(window[None]).logits.float() for m in (model, dense))
            return float((ours - theirs).abs().mean())

        return difference

    with LOSSES.including(Loss("difference", "of logits", "logits", on)):
        found = gpprune.compare(
            ["magnitude"], sparsity=0.0, loss="difference", **{**how, "dtype": "bfloat16"}
        )
    dense, nothing = (row.evaluation.mean for row in found.rows)
    assert dense == nothing > 0


def test_windows_longer_than_a_table_of_positions_are_refused(
    how: dict[str, Any], tiny_gpt2_dir: Path
) -> None:
    texts = Texts(how["texts"].text, how["texts"].text, 1, 513, 1)
    with pytest.raises(UsageError, match="more than the 512 positions"):
        gpprune.compare(["magnitude"], model=str(tiny_gpt2_dir), texts=texts)
