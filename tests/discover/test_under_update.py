"""A search under a weight update: what it measures, screens by, reports and hands on."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.discover import Texts, compare
from gpprune.discover.describe import describe_run
from gpprune.discover.plots import summary_figure
from gpprune.discover.report import screening_line
from gpprune.discover.search import ready
from gpprune.discover.stored import restored
from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.evals import evaluate, shown
from gpprune.gp import Archive, Outcome, RunDirectory, Screening
from gpprune.prune import UPDATES, Update

FEW = gpprune.SearchSettings(population=16, offspring=12, generations=3, top_k=2, race_z=0.5)
SPLITS = ("validation", "test")
HOW: dict[str, Any] = {"update": "refit", "damp_inputs": 0.05, "damp_outputs": 0.2}


@pytest.fixture
def goal(tiny_model_dir: Path, text_file: Path) -> gpprune.MetricGoal:
    texts = Texts(
        str(text_file), str(text_file), windows=3, window_length=32, calibration_samples=3
    )
    return gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32", sparsity=0.7, **HOW)


@pytest.fixture
def flags(tiny_model_dir: Path, text_file: Path) -> list[str]:
    return [
        *("--model", str(tiny_model_dir), "--text", str(text_file)),
        *("--calibration-text", str(text_file)),
        *("--windows", "3", "--window-length", "32", "--calibration-samples", "3"),
        *("--dtype", "float32"),
    ]


@pytest.mark.parametrize("kind", [gpprune.MetricGoal, gpprune.AllocationGoal, gpprune.JointGoal])
def test_a_goal_measures_what_its_updates_estimate_reads(kind: Any) -> None:
    for name, update in UPDATES.items():
        found = kind(update=name).statistics
        assert found >= update.reads
        if "aaT" in update.reads:
            assert found & {"ggT", "Gk"}
    assert not kind().statistics & {"aaT", "ggT"}
    own = Update("own", "mine", UPDATES["refit"].apply, frozenset({"aaT", "ggT"}))
    with UPDATES.including(own):
        assert kind(update="own").statistics >= {"aaT", "ggT"}


@pytest.mark.parametrize("update", [name for name, entry in UPDATES.items() if entry.reads])
def test_a_search_under_an_update_has_estimates(goal: gpprune.MetricGoal, update: str) -> None:
    bench = ready(replace(goal, update=update))
    fitness = replace(goal, update=update).fitness(bench)
    estimate = fitness.estimate(gpprune.published["wanda"])
    assert estimate is not None and estimate > 0


def test_a_search_says_what_its_estimate_was_worth(
    goal: gpprune.MetricGoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "run"
    handed_on = replace(goal, shots=3, schedule="cosine")
    found = gpprune.discover(handed_on, out=where, settings=FEW, rivals="best")
    outcomes = found.result.outcomes
    assert all(o.estimate is not None for o in outcomes if o.reason is None)
    screening = found.screening
    assert screening is not None and screening.kendall_tau is not None
    assert screening.judged == sum(outcome.full for outcome in outcomes)
    document = json.loads((where / "report.json").read_text())
    assert document["estimate"] == screening.as_dict()
    assert document["shots"] == 3
    # the recipe prunes in shots under the search's damping
    recipe = gpprune.Recipe.read(where / "recipe.json")
    assert recipe == found.recipe
    assert (recipe.shots, recipe.schedule, recipe.update) == (3, "cosine", "refit")
    assert (recipe.damp_inputs, recipe.damp_outputs) == (0.05, 0.2)
    with RunDirectory.open(where) as opened:
        assert replace(restored(opened), texts=goal.texts) == handed_on
    # every command that reads the run
    capsys.readouterr()
    assert run(["resume", str(where), "--rivals", "best"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert screening_line(screening) in printed
    assert "searched under one shot; the recipe prunes in 3" in printed
    assert run(["report", str(where)]) == 0
    assert screening_line(screening) in " ".join(capsys.readouterr().out.split())
    assert run(["report", str(where), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["estimate"] == screening.as_dict()


@pytest.mark.parametrize("update", ["refit", "refit(3)", "sparsegpt-blocks"])
def test_a_formula_is_reported_under_the_update_and_with_masks_alone(
    goal: gpprune.MetricGoal, update: str
) -> None:
    goal = replace(goal, update=update)
    found = gpprune.discover(goal, settings=FEW.replaced(generations=1), rivals="best")
    assert len(found.rivals) == 1 and found.winners
    bench = ready(goal)
    for finding in found.findings:
        for judged, how in ((finding.judged, update), (finding.masks_alone, "none")):
            own = replace(goal, update=how, pattern=finding.setting)
            draft = own.fitness(bench)
            fitness = draft.under(draft.masking, how)  # the whole update
            formula = own.canonical(finding.formula)
            wanted = fitness.evaluate(formula, fitness.windows, bench.test_windows())
            assert judged is not None
            figures = [judged.validation.figure, judged.test.figure]
            assert figures == pytest.approx([evaluation.figure for evaluation in wanted])
    rows = found.document()["formulas"]
    for finding, row in zip(found.findings, rows, strict=True):
        alone = finding.masks_alone
        assert alone is not None
        assert row["validation_perplexity"] == finding.validation.figure
        assert row["test_perplexity"] == finding.test.figure
        assert row["masks_alone"] == {
            "validation_perplexity": alone.validation.figure,
            "test_perplexity": alone.test.figure,
        }
        assert row["masks_alone"]["test_perplexity"] != row["test_perplexity"]


@pytest.mark.parametrize("order", ["corrected", "sequential"])
@pytest.mark.parametrize("kind", [gpprune.MetricGoal, gpprune.AllocationGoal])
def test_a_report_in_an_order_is_what_the_recipe_prunes(
    kind: Any, order: str, goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    other = kind(
        *(goal.texts, goal.model),
        **{"dtype": "float32", "sparsity": 0.7, "update": "least-squares", "order": order},
    )
    out, settings = tmp_path / "run", FEW.replaced(generations=1)
    found = gpprune.discover(other, out=out, settings=settings, rivals="best")
    assert json.loads((out / "report.json").read_text())["order"] == order
    recipe = gpprune.Recipe.read(out / "recipe.json")
    assert recipe.order == order
    checkpoint = tmp_path / "pruned"
    gpprune.prune_to(checkpoint, recipe, model=other.model, texts=other.texts)
    bench = ready(other)
    model = gpprune.load_model(str(checkpoint)).model
    for judged, windows in (
        (found.winners[0].validation, bench.windows("validation", spread=other.spread)),
        (found.winners[0].test, bench.test_windows(spread=other.spread)),
    ):
        assert evaluate(model, windows).figure == pytest.approx(judged.figure, rel=1e-5)
    plain = gpprune.discover(replace(other, order=None), settings=settings, rivals="best")
    for ordered, dense in zip(found.findings, plain.findings, strict=True):
        if ordered.formula.key == dense.formula.key:
            assert ordered.test.figure != dense.test.figure
            assert ordered.masks_alone is not None and dense.masks_alone is not None
            assert ordered.masks_alone.test.figure == dense.masks_alone.test.figure


CORRECTED = {"update": "admm", "order": "corrected"}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (gpprune.MetricGoal, CORRECTED),
        (gpprune.MetricGoal, {"update": "least-squares", "order": "dense", "shots": 2}),
        (gpprune.MetricGoal, {"update": "none"}),
        (gpprune.AllocationGoal, CORRECTED),
        (gpprune.JointGoal, {"update": "least-squares"}),
    ],
)
def test_a_search_may_judge_by_all_that_its_recipe_does(
    kind: Any, how: dict[str, Any], goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    common = {"dtype": "float32", "sparsity": 0.6, "draft": "recipe"}
    other = kind(goal.texts, goal.model, **common, **how)
    out, settings = tmp_path / "run", FEW.replaced(offspring=3, generations=1, race_z=math.inf)
    found = gpprune.discover(other, out=out, settings=settings, rivals="best", winners=1)
    (winner,) = found.winners
    (best,) = found.result.archive.evolved(1)
    assert winner.formula.text == best.text
    assert winner.validation.mean == pytest.approx(best.fitness)
    recipe = gpprune.Recipe.read(out / "recipe.json")
    gpprune.prune_to(tmp_path / "pruned", recipe, model=other.model, texts=other.texts)
    bench, model = ready(other), gpprune.load_model(str(tmp_path / "pruned")).model
    windows = bench.windows("validation", spread=other.spread)
    assert evaluate(model, windows).mean == pytest.approx(best.fitness, rel=1e-5)
    rival = found.rivals[0]  # perhaps in a setting of its own
    setting = {other.varied: rival.setting}
    pruned = bench.pruned(
        replace(other, **setting).recipe(rival.formula), [windows], other.order or "sequential"
    )
    assert rival.validation.mean == pytest.approx(pruned[0].mean, rel=1e-5)
    for finding in found.findings:
        assert (finding.masks_alone is None) == (other.update == "none")
        if finding.masks_alone is not None:
            assert finding.masks_alone.test.figure != finding.test.figure


def test_what_later_shots_give_is_not_told_by_the_dense_model_s_zeros(
    goal: gpprune.MetricGoal,
) -> None:
    how: dict[str, Any] = {"dtype": "float32", "sparsity": 0.7, "update": "none", "unit": "block"}
    for shots in (1, 3):
        other = gpprune.AllocationGoal(
            *(goal.texts, goal.model), **how, draft="recipe", order="dense", shots=shots
        )
        bench = ready(other)
        fitness = other.fitness(bench)
        # alike on the dense model, whose first block has the wider weights
        first, second = (
            gpprune.allocation(text) for text in ("spread(depth, -0.3)", "spread(std(W), 0.3)")
        )
        assert fitness.masking.fingerprint(first) == fitness.masking.fingerprint(second)
        windows = bench.windows("validation", spread=True)
        losses = [fitness.prepare(formula)(0, fitness.cases) for formula in (first, second)]
        for formula, own in zip((first, second), losses, strict=True):
            (pruned,) = bench.pruned(other.recipe(formula), [windows], "dense")
            assert own == pytest.approx(pruned.losses.tolist(), rel=1e-5)
        assert (fitness.fingerprint(first) is None) == (shots == 3)
        assert (losses[0] == losses[1]) == (shots == 1)


def test_what_cannot_be_pruned_by_is_unfit_under_the_whole_recipe(goal: gpprune.MetricGoal) -> None:
    other = replace(goal, update="least-squares", draft="recipe")
    fitness = other.fitness(ready(other))
    for text in ("min(abs(W), -1)", "max(tanh(W), 2)"):
        with pytest.raises(Unfit, match="all scores of"):
            fitness.prepare(gpprune.parse(text))

    def cannot(*_: object) -> torch.Tensor:
        raise GppruneError("the curvature cannot be inverted")

    with UPDATES.including(Update("cannot", "fails", cannot)):
        failing = replace(goal, update="cannot", draft="recipe")
        fitness = failing.fitness(ready(failing))
        with pytest.raises(Unfit, match="cannot be inverted"):
            fitness.prepare(gpprune.published["wanda"])


def test_what_an_order_needs_is_said_before_the_search(
    goal: gpprune.MetricGoal, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'corrected' makes up for what"):
        gpprune.discover(replace(goal, update="none", order="corrected"))
    with pytest.raises(UsageError, match="no order 'backwards'"):
        gpprune.discover(replace(goal, order="backwards"))
    loaded = gpprune.load_model(goal.model)
    block = loaded.model.get_submodule("model.layers.1")
    block.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 0, *inputs[1:]))
    chained = replace(goal, order="corrected")
    with pytest.raises(GppruneError, match="not a plain chain"):
        gpprune.discover(chained, out=tmp_path / "run", loaded=loaded)
    assert not (tmp_path / "run").exists()
    with pytest.raises(GppruneError, match="not a plain chain"):
        gpprune.discover(replace(goal, draft="recipe"), out=tmp_path / "run", loaded=loaded)


def test_a_formula_that_is_unfit_on_pruned_states_loses_no_report(goal: gpprune.MetricGoal) -> None:
    def spoils(weight: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.full_like(weight, math.nan)

    fine = UPDATES["least-squares"]
    own = Update("spoils", "makes NaN", spoils, frozenset({"aaT"}), draft=fine)
    with UPDATES.including(own):
        other = replace(goal, update="spoils", order="corrected")
        found = gpprune.discover(other, settings=FEW.replaced(generations=0), rivals="best")
    assert found.findings
    for finding in found.findings:
        assert finding.test.mean == math.inf
        assert finding.masks_alone is not None and math.isfinite(finding.masks_alone.test.mean)


@pytest.mark.parametrize("kind", [gpprune.AllocationGoal, gpprune.JointGoal])
def test_allocations_and_pairs_are_reported_with_masks_alone_too(
    kind: Any, goal: gpprune.MetricGoal
) -> None:
    settings = FEW.replaced(generations=0)
    other = kind(goal.texts, goal.model, dtype="float32", sparsity=0.7, update="least-squares")
    without = gpprune.discover(replace(other, update="none"), settings=settings)
    plain = {(f.name, f.setting): (f.validation.figure, f.test.figure) for f in without.findings}
    shared = 0
    for finding in gpprune.discover(other, settings=settings).findings:
        alone = finding.masks_alone
        assert alone is not None
        # a rival may stand in another setting, and another formula may be the best that evolved
        if (finding.name, finding.setting) in plain and not finding.evolved:
            figures = (alone.validation.figure, alone.test.figure)
            assert figures == plain[finding.name, finding.setting]
            shared += 1
    assert shared


def test_what_an_update_spoils_still_has_masks(goal: gpprune.MetricGoal) -> None:
    spoils = Update("spoils", "mine", lambda weight, *_: torch.full_like(weight, math.nan))
    with UPDATES.including(spoils):
        found = gpprune.discover(
            replace(goal, update="spoils"), settings=FEW.replaced(generations=0), rivals="best"
        )
    (row,) = found.document()["formulas"]
    assert row["validation_perplexity"] is row["test_perplexity"] is None
    assert all(figure > 1 for figure in row["masks_alone"].values())


def cells(printed: str) -> list[list[str]]:
    """The rows of a table that was printed, its titles first."""
    lines = [line.strip("│┃ ") for line in printed.splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in re.split("[│┃]", line)] for line in lines]


def test_tables_have_a_row_with_masks_alone_and_a_row_with_the_update(
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out = str(tmp_path / "run")
    search = ["--population", "6", "--generations", "1", "--rivals", "best", "--out", out]
    assert run(["evolve", "metric", *flags, *search, "--update", "least-squares"]) == 0
    titles, *rows = cells(capsys.readouterr().out)
    assert titles == ["metric", "from", "pattern", "update", "validation", "test", "closed form"]
    document = json.loads((tmp_path / "run" / "report.json").read_text())
    wanted = [
        [formula["name"], update, *(shown(judged[f"{split}_perplexity"]) for split in SPLITS)]
        for formula in document["formulas"]
        for update, judged in (("masks alone", formula["masks_alone"]), ("least-squares", formula))
    ]
    assert [[row[0], *row[3:6]] for row in rows] == wanted
    # a search that is resumed reports the same
    assert run(["resume", out, "--rivals", "best"]) == 0
    assert cells(capsys.readouterr().out) == [titles, *rows]
    assert run(["resume", out, "--rivals", "best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document


def test_a_search_without_an_update_reports_a_formula_once(
    goal: gpprune.MetricGoal,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    search = ["--population", "6", "--generations", "1", "--rivals", "best"]
    assert run(["evolve", "metric", *flags, *search, "--out", str(tmp_path / "run")]) == 0
    table = cells(capsys.readouterr().out)
    assert table[0] == ["metric", "from", "pattern", "validation", "test", "closed form"]
    rows = json.loads((tmp_path / "run" / "report.json").read_text())["formulas"]
    assert [row[0] for row in table[1:]] == [row["name"] for row in rows]
    assert not any("masks_alone" in row for row in rows)


def test_a_search_without_an_update_has_no_estimate(goal: gpprune.MetricGoal) -> None:
    found = gpprune.discover(
        replace(goal, update="none"), settings=FEW.replaced(generations=0), rivals="best"
    )
    assert found.screening is None
    assert found.document()["estimate"] is None


def test_what_reads_a_run_bears_candidates_that_were_judged_on_no_case(
    goal: gpprune.MetricGoal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "run"
    found = gpprune.discover(goal, out=where, settings=FEW.replaced(generations=1), rivals="best")
    best = found.result.best(1)[0]
    with RunDirectory.open(where) as opened, opened.exclusive():
        for text in ("mul(sqr(W), sqrt(X))", "mul(abs(W), exp(X))"):
            formula = gpprune.parse(text)
            spared = Outcome(
                key=formula.digest,
                text=formula.text,
                origin="random",
                generation=1,
                fitness=best.fitness - 1,  # foretold better than any, and still no winner
                losses=(),
                full=False,
                reason=None,
                seconds=0.1,
                estimate=1e6,
            )
            assert spared.dropped and spared.spared
            opened.record(spared)
    (summary,) = gpprune.summarise([where])
    assert summary.best is not None
    assert summary.screening is not None and summary.screening.spared >= 2
    # first is what the search's own judgement has first, by the update's draft
    (own,) = (w for w in found.winners if w.formula.text == summary.best.text)
    assert (summary.validation, summary.test) == (own.validation.figure, own.test.figure)
    assert summary_figure([summary]) is not None
    assert describe_run(where)[0].formula.text == summary.best.text
    for command in (["simplify"], ["report"], ["report", "--json"]):
        assert run([*command[:1], str(where), *command[1:]]) == 0
    assert run(["resume", str(where), "--generations", "2", "--rivals", "best"]) == 0
    capsys.readouterr()


def test_a_line_says_what_an_estimate_was_worth() -> None:
    assert screening_line(Screening(0.831, judged=41, spared=12, estimated=60)) == (
        "the curvature's estimate and the loss rank 41 candidates with Kendall's tau 0.83; "
        "it spared 12 of 60 candidates their judging"
    )
    assert screening_line(Screening(None, judged=1, spared=0, estimated=3)) == (
        "the curvature's estimate spared 0 of 3 candidates their judging"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"damp_inputs": -1.0}, "damp_inputs"),
        ({"shots": 0}, "shots"),
        ({"schedule": "sudden"}, "sudden"),
        ({"update": "repair"}, "repair"),
    ],
)
def test_a_wrong_field_is_said_before_anything_is_made(
    goal: gpprune.MetricGoal, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        gpprune.discover(replace(goal, **changes), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_commands_search_under_an_update(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--population", "6", "--generations", "1", "--rivals", "best", "--json"]
    how = ["--update", "refit", "--damp-inputs", "0.05", "--damp-outputs", "0.2", "--shots", "2"]
    for kind in ("metric", "allocation", "joint"):
        out = str(tmp_path / kind)
        assert run(["evolve", kind, *flags, *search, *how, "--out", out]) == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["update"], document["shots"]) == ("refit", 2)
        assert document["estimate"]["estimated"] > 0
        recipe = gpprune.Recipe.read(tmp_path / kind / "recipe.json")
        assert (recipe.damp_inputs, recipe.damp_outputs, recipe.shots) == (0.05, 0.2, 2)
    pruned = ["prune", *flags[:2], *flags[4:6], *flags[8:12], "--out", str(tmp_path / "pruned")]
    assert run([*pruned, "--recipe", str(tmp_path / "joint" / "recipe.json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["shots"]) == 2


def test_one_threshold_is_for_metrics_alone(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["--population", "6", "--generations", "1", "--pattern", "model"]
    search += ["--update", "refit(7)"]
    out = str(tmp_path / "metric")
    assert run(["evolve", "metric", *flags, *search, "--json", "--out", out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pattern"] == "model"
    assert document["estimate"]["estimated"] > 0
    recipe = gpprune.Recipe.read(tmp_path / "metric" / "recipe.json")
    assert (recipe.pattern, recipe.update) == ("model", "refit(7)")
    for kind in ("allocation", "joint"):
        assert run(["evolve", kind, *flags, *search, "--out", str(tmp_path / kind)]) == 2
        assert "shares the sparsity out by itself" in capsys.readouterr().err
        assert not (tmp_path / kind).exists()


def test_damping_changes_a_comparison(
    goal: gpprune.MetricGoal, flags: list[str], capsys: Any
) -> None:
    table = compare(
        ["wanda"],
        model=goal.model,
        texts=goal.texts,
        split="validation",
        dtype="float32",
        update="refit",
        damp_inputs=0.05,
        damp_outputs=0.2,
    )
    score = ["score", "metrics", "wanda", *flags, "--split", "validation", "--json"]
    damped = ["--update", "refit", "--damp-inputs", "0.05", "--damp-outputs", "0.2"]
    assert run([*score, *damped]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed[1]["perplexity"] == pytest.approx(table.rows[1].evaluation.figure)
    assert run([*score, "--update", "refit"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["perplexity"] != printed[1]["perplexity"]
    assert run([*score, "--update", "refit", "--damp-inputs", "-1"]) == 2
    assert "damp_inputs" in capsys.readouterr().err


def test_a_search_may_judge_by_another_update_than_it_prunes_by(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    search = ["--population", "6", "--generations", "1", "--rivals", "best", "--winners", "1"]
    under = ["--update", "kron-admm", "--draft", "none"]
    assert run(["evolve", "metric", *flags, *search, *under, "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    _, evolved = document["formulas"]
    assert document["update"] == "kron-admm" and document["estimate"] is None
    with RunDirectory.open(out) as opened:
        goal = restored(opened)
        best = Archive(opened.outcomes()).evolved(1)[0]
    assert isinstance(goal, gpprune.MetricGoal) and goal.draft == "none"
    # candidates were judged with masks alone, and the recipe has the update
    assert best.text == evolved["formula"]
    alone = evolved["masks_alone"]["validation_perplexity"]
    assert math.exp(best.fitness) == pytest.approx(alone)
    assert evolved["validation_perplexity"] != pytest.approx(alone)
    assert gpprune.Recipe.read(out / "recipe.json").update == "kron-admm"
    # a search that is resumed reports the same
    assert run(["resume", str(out), "--rivals", "best", "--winners", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    for wrong in (["--draft", "nine"], ["--winners", "0"]):
        assert run(["evolve", "metric", *flags, *wrong, "--out", str(tmp_path / "no")]) == 2
        assert wrong[1] in capsys.readouterr().err
    with pytest.raises(gpprune.GppruneError, match="0 winners"):
        gpprune.discover(goal, winners=0)
