"""What formulas do where they were not found: settings, ranks, gains, and going on."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.discover import Contender, Texts, Workbench, carry_over, compare_recipes
from gpprune.discover.plots import save_figure, transfer_figure
from gpprune.discover.transfer.candidates import Setting
from gpprune.discover.transfer.result import CarryOver, Cell, Line
from gpprune.errors import UsageError
from gpprune.evals import Evaluation, Loss
from gpprune.gp import PRESETS
from gpprune.prune import Recipe

MINE = "mul(pow(abs(W), 0.9), X)"
ZERO = Loss("zero", "what may be 0", "parts", lambda model, dense: lambda window: 0.0)


@pytest.fixture
def on(text_file: Path) -> dict[str, Any]:
    """On what is judged: the tiny text, in little."""
    texts = Texts(str(text_file), str(text_file), 3, 32, 4)
    return {"texts": [str(text_file)], "on": texts, "dtype": "float32"}


@pytest.fixture
def other_text(text_file: Path, tmp_path: Path) -> Path:
    """Rows of JSON, the words of the tiny text in other places."""
    rows = text_file.read_text().splitlines()[::-1]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": row, "url": "x"}) + "\n" for row in rows))
    return path


def test_every_setting_has_what_a_comparison_gives(
    tiny_model_dir: Path, tiny_gpt2_dir: Path, on: dict[str, Any], other_text: Path
) -> None:
    models = [str(tiny_model_dir), str(tiny_gpt2_dir)]
    texts = [*on["texts"], str(other_text)]
    found = carry_over([MINE], models=models, sparsity=[0.5], **{**on, "texts": texts})
    assert [(s.model, s.text) for s in found.settings] == [(m, t) for m in models for t in texts]
    for at, setting in enumerate(found.settings):
        shares = [
            Contender(line.name, cell.recipe)
            for line in found.lines
            if (cell := line.cells[at]) is not None
        ]
        where = Texts(setting.text, on["on"].calibration_text, 3, 32, 4)
        same = compare_recipes(shares, model=setting.model, texts=where, dtype="float32")
        assert found.dense[at].mean == same.dense.evaluation.mean
        cells = [cell for line in found.lines if (cell := line.cells[at]) is not None]
        own = [row.evaluation.mean for row in same.rows[1:]]
        assert own == [cell.evaluation.mean for cell in cells]


def test_a_recipe_is_pruned_by_once_for_all_texts(
    tiny_model_dir: Path, on: dict[str, Any], other_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, whole = [], Workbench.pruned

    def counted(self: Workbench, recipe: Recipe, *more: Any) -> Any:
        pruned.append(recipe)
        return whole(self, recipe, *more)

    monkeypatch.setattr(Workbench, "pruned", counted)
    how = {**on, "texts": [*on["texts"], str(other_text)], "order": "sequential"}
    found = carry_over(
        [MINE], models=[str(tiny_model_dir)], sparsity=[0.5], against=["wanda"], **how
    )
    assert len(found.settings) == 2
    assert [recipe.metric for recipe in pruned] == [MINE, "mul(abs(W), X)"]


def test_published_metrics_have_the_better_of_two_patterns(
    tiny_model_dir: Path, on: dict[str, Any]
) -> None:
    model = str(tiny_model_dir)
    found = carry_over(
        [MINE], models=[model], patterns=["layer"], sparsity=[0.6], against=["wanda", "ria"], **on
    )
    assert [line.name for line in found.lines] == [MINE, "wanda", "ria"]
    wanda = found.lines[1].cells[0]
    assert wanda is not None
    each = [
        compare_recipes(
            [Contender("wanda", Recipe(metric="wanda", sparsity=0.6, pattern=pattern))],
            model=model,
            texts=on["on"],
            dtype="float32",
        ).rows[1]
        for pattern in ("row", "layer")
    ]
    best = min(each, key=lambda row: row.evaluation.mean)
    assert wanda.evaluation.mean == best.evaluation.mean
    assert wanda.recipe.pattern == (best.recipe and best.recipe.pattern)


def test_a_strict_pattern_has_no_looser_rivals(tiny_model_dir: Path, on: dict[str, Any]) -> None:
    found = carry_over([MINE], models=[str(tiny_model_dir)], patterns=["2:4"], sparsity=[0.7], **on)
    assert [s.sparsity for s in found.settings] == [0.5]
    cells = [cell for line in found.lines for cell in line.cells if cell is not None]
    assert {cell.recipe.pattern for cell in cells} == {"2:4"}


def test_gains_ranks_and_tau(tiny_model_dir: Path, on: dict[str, Any]) -> None:
    found = carry_over(
        [MINE, "abs(W)"],
        models=[str(tiny_model_dir)],
        sparsity=[0.5, 0.7],
        against=["wanda", "gblm", "ria"],
        **on,
    )
    mine, plain, *published = found.lines
    for at in range(2):
        figures = {line.name: line.figure(at) or math.nan for line in found.lines}
        best = min(figures[line.name] for line in published)
        assert found.gain(mine, at) == pytest.approx(1 - figures[mine.name] / best)
        assert found.rank(plain, at) == 1 + sum(f < figures["abs(W)"] for f in figures.values())
    assert found.mean_gain(mine) == pytest.approx(found.gain(mine, 1))
    first, second = ([line.figure(at) or 0.0 for line in found.lines] for at in range(2))
    pairs = [(i, j) for i in range(5) for j in range(i)]
    signs = [[(own[i] > own[j]) - (own[i] < own[j]) for i, j in pairs] for own in (first, second)]
    agreed = sum(x * y for x, y in zip(*signs, strict=True))
    untied = math.sqrt(math.prod(sum(map(abs, own)) for own in signs))
    assert found.tau(1) == pytest.approx(agreed / untied)
    assert found.tau(0) == pytest.approx(1)
    (_, columns, rows, numbers), (_, _, means, _) = found.tables()
    assert columns == ["formula", "0.5", "0.7"] and numbers == ["0.5", "0.7"]
    assert rows[1][0] == f"{MINE} (carried over)"
    best = [one.name for at in range(2) if (one := found.best_published(at))]
    assert ["best published", *best] in rows
    assert rows[-1] == ["Kendall's tau to the first", "", f"{found.tau(1):.4g}"]
    assert [name for name, _ in means] == [MINE, "abs(W)"]


@pytest.mark.parametrize("text", ["spread(depth, 0.2)", "alphapruning"])
def test_allocations_stand_beside_allocations(
    text: str, tiny_model_dir: Path, on: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe(metric="wanda", allocation=text, sparsity=0.6)
    (tmp_path / "mine.json").write_text(recipe.model_dump_json())
    found = carry_over([str(tmp_path / "mine.json")], models=[str(tiny_model_dir)], **on)
    names = [line.name for line in found.lines]
    assert names[:2] == ["mine", "uniform"]
    assert {"owl", "atp", "snip"} <= set(names)


def test_joint_formulas_stand_beside_pairs(
    tiny_model_dir: Path, on: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe(metric=MINE, allocation="spread(depth, 0.2)", sparsity=0.6, pattern="layer")
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    found = carry_over(
        [str(tmp_path / "recipe.json")],
        models=[str(tiny_model_dir)],
        against=["wanda", "wanda atp(0.2)"],
        **on,
    )
    assert [line.name for line in found.lines] == [tmp_path.name, "wanda", "wanda atp(0.2)"]


def test_a_run_gives_its_best(
    tiny_model_dir: Path, text_file: Path, on: dict[str, Any], tmp_path: Path
) -> None:
    goal = gpprune.MetricGoal(
        texts=Texts(str(text_file), str(text_file), 3, 32, 4),
        model=str(tiny_model_dir),
        dtype="float32",
        sparsity=0.6,
    )
    settings = PRESETS["quick"].replaced(population=6, generations=2)
    searched = gpprune.discover(goal, settings=settings, out=tmp_path / "run", winners=2)
    found = carry_over(
        [str(tmp_path / "run")], models=[str(tiny_model_dir)], top=2, against=["wanda"], **on
    )
    assert [line.name for line in found.carried] == ["run", "run 2"]
    first = found.lines[0].cells[0]
    assert first is not None
    assert first.recipe == searched.recipe


def test_no_number_is_no_rank() -> None:
    """The best published formula has 0; one has NaN, one infinity."""

    def line(name: str, carried: bool, *losses: float) -> Line:
        cells = [Cell(Recipe(sparsity=0.5), Evaluation(torch.tensor([x]), ZERO)) for x in losses]
        return Line(name, carried, tuple(cells))

    lines = [line("mine", True, 3.0, 3.0), line("a", False, math.nan, 0.0)]
    lines.append(line("b", False, math.inf, 2.0))
    places = tuple(Setting(model, "text", 0.5, None) for model in ("x/one", "y/one"))
    found = CarryOver(places, (Evaluation(torch.tensor([1.0]), ZERO),) * 2, tuple(lines), ())
    assert [found.rank(one, 0) for one in lines] == [1, None, 2]
    best = [found.best_published(at) for at in range(2)]
    assert [one and one.name for one in best] == ["b", "a"]
    assert [found.gain(lines[0], at) for at in range(2)] == [None, None]
    assert found.names == ["x/one", "y/one"]


def test_what_cannot_be_followed_is_said(
    tiny_model_dir: Path, on: dict[str, Any], tmp_path: Path
) -> None:
    found = carry_over(
        [MINE],
        models=[str(tiny_model_dir)],
        sparsity=[0.5],
        patterns=["row", "rows:7"],
        against=["wanda"],
        **on,
    )
    assert [cell is None for cell in found.lines[0].cells] == [False, True]
    assert any("rows:7" in sentence for sentence in found.left)
    assert found.gain(found.lines[0], 1) is None


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        ([], {}, "nothing to carry over"),
        (["wanda", "wanda"], {}, "two recipes are called 'wanda'"),
        (["no/such/run"], {}, "there is no run directory"),
        (["no.json"], {}, "there is no recipe 'no.json'"),
        ([MINE], {"models": []}, "no model to judge on"),
        ([MINE], {"models": ["./no-model"]}, "no model directory './no-model'"),
        ([MINE], {"against": ["wandaa"]}, "no published formula 'wandaa' of the kind"),
        ([MINE], {"patterns": ["2:5x"]}, "2:5x"),
        ([MINE], {"sparsity": [1.5]}, "1.5"),
        ([MINE], {"out": "no-dir/x.json"}, "no directory"),
        ([MINE], {"order": "backwards"}, "backwards"),
    ],
)
def test_what_is_wrong_is_said_before_the_work(
    given: list[str],
    how: dict[str, Any],
    message: str,
    tiny_model_dir: Path,
    on: dict[str, Any],
) -> None:
    with pytest.raises(UsageError, match=message):
        carry_over(given, **{"models": [str(tiny_model_dir)], "sparsity": None, **on, **how})


def test_budgets_are_one(on: dict[str, Any], tiny_model_dir: Path, tmp_path: Path) -> None:
    for name, values in {"a": {"update": "refit"}, "b": {}, "c": {"sparsity": 0.6}}.items():
        recipe = Recipe(**{"metric": "wanda", "sparsity": 0.5, **values})
        (tmp_path / f"{name}.json").write_text(recipe.model_dump_json())
    a, b, c = (str(tmp_path / f"{name}.json") for name in "abc")
    with pytest.raises(UsageError, match=r"'b' differs from 'a' in .*update"):
        carry_over([a, b], models=[str(tiny_model_dir)], **on)
    for patterns in (None, ["row"]):
        with pytest.raises(UsageError, match=r"sparsities 0\.5, 0\.6"):
            carry_over([b, c], models=[str(tiny_model_dir)], patterns=patterns, **on)
    (tmp_path / "d.json").write_text('{"metric": "ria", "pattern": "2:4"}')
    with pytest.raises(UsageError, match=r"'2:4' of 'd' prunes a share of 0\.5, not 0\.6"):
        carry_over([str(tmp_path / "d.json")], models=[str(tiny_model_dir)], sparsity=[0.6], **on)


def command(model: Path, text: Path, *more: str) -> list[str]:
    named = ["transfer", MINE, "--model", str(model), "--text", str(text), "--windows", "3"]
    named += ["--window-length", "32", "--calibration-samples", "4", "--dtype", "float32"]
    return [*named, "--calibration-text", str(text), "--sparsity", "0.5,0.6,0.7", *more]


def test_a_killed_command_goes_on(
    tiny_model_dir: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, kept = tmp_path / "found.json", tmp_path / "found.json.figures"
    given = command(tiny_model_dir, text_file, "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "gpprune", *given],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and (not kept.exists() or kept.read_text().count("\n") < 12):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    before = kept.read_text()
    with kept.open("a") as file:
        file.write('{"of": "cut o')  # as a kill may leave it
    again = command(tiny_model_dir, text_file, "--out", str(tmp_path / "whole.json"))
    assert run(given) == 0
    assert run(again) == 0
    assert before.count('"of"') >= 6
    assert json.loads(out.read_text()) == json.loads((tmp_path / "whole.json").read_text())
    assert not kept.exists()
    assert "best published" in capsys.readouterr().out


def test_the_command_prints_json_alone_and_draws(
    tiny_model_dir: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture"
    given = command(tiny_model_dir, text_file, "--against", "wanda", "--plot", str(picture))
    assert run([*given, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in document["formulas"]] == [MINE, "wanda"]
    assert len(document["settings"]) == 3
    assert picture.with_suffix(".svg").is_file()
    losses = document["formulas"][0]["in"][0]["losses"]
    nll = document["formulas"][0]["in"][0]["nll"]
    assert torch.tensor(losses, dtype=torch.float64).mean() == pytest.approx(nll)


def test_a_picture_needs_something_published(
    tiny_model_dir: Path, on: dict[str, Any], tmp_path: Path
) -> None:
    found = carry_over([MINE], models=[str(tiny_model_dir)], sparsity=[0.5], against=[], **on)
    with pytest.raises(UsageError, match="no published formula"):
        transfer_figure(found)
    found = carry_over([MINE], models=[str(tiny_model_dir)], sparsity=[0.5], **on)
    assert len(save_figure(transfer_figure(found), tmp_path / "p")) == 2
