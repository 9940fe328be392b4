"""The command line on a tiny model, as a person meets it: outputs, exit codes, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpprune.cli.main import run
from gpprune.discover import Texts, Workbench
from gpprune.errors import UsageError
from gpprune.primitives import published
from gpprune.prune import linear_layers


def test_prune_writes_what_plain_transformers_loads(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    assert run(["prune", *small, "--metric", "wanda", "--sparsity", "0.5", "--out", str(out)]) == 0
    assert "0.5000" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(out)
    for layer in linear_layers(model).values():
        zeros = (layer.weight == 0).sum(dim=1)
        assert torch.all(zeros == layer.in_features // 2)
    recipe = json.loads((out / "gpprune_recipe.json").read_text())["recipe"]
    assert (recipe["metric"], recipe["sparsity"], recipe["pattern"]) == ("wanda", 0.5, "row")


def test_synthetic_samples_are_in_the_recipe(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, more, again, none = (tmp_path / name for name in ("plain", "more", "again", "none"))
    assert run(["prune", *small, "--metric", "wanda", "--out", str(plain)]) == 0
    flags = ["--metric", "wanda", "--synthetic-samples", "2", "--out", str(more)]
    assert run(["prune", *small, *flags]) == 0
    path = more / "gpprune_recipe.json"
    assert json.loads(path.read_text())["recipe"]["synthetic_samples"] == 2
    recipe = ["--recipe", str(path)]
    assert run(["prune", *small, *recipe, "--out", str(again)]) == 0
    off = ["--synthetic-samples", "0", "--out", str(none)]
    assert run(["prune", *small, *recipe, *off]) == 0
    files = {out: (out / "model.safetensors").read_bytes() for out in (plain, more, again, none)}
    assert files[more] == files[again] != files[plain] == files[none]
    capsys.readouterr()
    flags = ["--metric", "magnitude", "--synthetic-samples", "2"]
    assert run(["prune", *small, *flags, "--out", str(tmp_path / "refused")]) != 0
    assert "2 synthetic samples are of no use" in capsys.readouterr().err


def test_what_recovers_keeps_its_zeros(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, more, again = (tmp_path / name for name in ("plain", "more", "again"))
    flags = ["--metric", "magnitude", "--pattern", "2:4"]  # measures nothing
    assert run(["prune", *small, *flags, "--out", str(plain)]) == 0
    assert run(["prune", *small, *flags, "--recover", "2", "--out", str(more)]) == 0
    path = more / "gpprune_recipe.json"
    assert json.loads(path.read_text())["recipe"]["recover"] == 2
    assert run(["prune", *small, "--recipe", str(path), "--out", str(again)]) == 0
    files = {out: (out / "model.safetensors").read_bytes() for out in (plain, more, again)}
    assert files[more] == files[again] != files[plain]
    one, other = (AutoModelForCausalLM.from_pretrained(out) for out in (plain, more))
    layers = linear_layers(other)
    for name, layer in linear_layers(one).items():
        assert torch.equal(layer.weight == 0, layers[name].weight == 0)
    capsys.readouterr()
    assert run(["prune", *small, "--recover", "-1", "--out", str(tmp_path / "refused")]) != 0
    assert "--recover" in capsys.readouterr().err


def test_the_order_is_in_the_recipe(small: list[str], tmp_path: Path) -> None:
    out, again = tmp_path / "pruned", tmp_path / "again"
    flags = ["--update", "least-squares", "--order", "corrected", "--out", str(out)]
    assert run(["prune", *small, *flags]) == 0
    path = out / "gpprune_recipe.json"
    assert json.loads(path.read_text())["recipe"]["order"] == "corrected"
    assert run(["prune", *small, "--recipe", str(path), "--out", str(again)]) == 0
    weights = [load_file(folder / "model.safetensors") for folder in (out, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    # a flag has the last word
    other = tmp_path / "other"
    flags = ["--recipe", str(path), "--order", "dense", "--out", str(other)]
    assert run(["prune", *small, *flags]) == 0
    found = json.loads((other / "gpprune_recipe.json").read_text())["recipe"]
    assert found["order"] == "dense"


def test_a_saved_model_is_judged_as_before_saving(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    flags = [*small, *judged, "--order", "sequential", "--dtype", "float32", "--json"]
    assert run(["score", "metrics", "wanda", *flags]) == 0
    before = json.loads(capsys.readouterr().out)[1]["nll"]
    assert run(["prune", *small, "--metric", "wanda", "--out", str(out)]) == 0
    capsys.readouterr()
    flags = ["--window-length", "32", *judged, "--dtype", "float32", "--json"]
    assert run(["eval", "--model", str(out), *flags]) == 0
    assert json.loads(capsys.readouterr().out)["nll"] == before


def test_a_text_without_parts_is_tested_on_what_no_search_sees(
    tiny_model_dir: Path, tiny_text: str, tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(tiny_text)
    for count in (1, 3, 7):
        texts = Texts(text=str(file), windows=count, window_length=32)
        bench = Workbench(str(tiny_model_dir), texts, dtype="float32")
        tokens = bench.material.tokens(str(file), "test").tolist()
        searched = bench.windows("validation", spread=True)
        tested = bench.test_windows()
        assert searched.shape == tested.shape == (count, 32)
        assert tested.flatten().tolist() == tokens[-32 * count :]
        rest = tokens[: -32 * count]
        grid = {tuple(rest[at : at + 32]) for at in range(0, len(rest) - 31, 32)}
        assert {tuple(window) for window in searched.tolist()} <= grid
        if count > 1:
            assert searched[0].tolist() != rest[:32]  # they are from all over the text
    texts = Texts(text=str(file), windows=len(tokens) // 32 // 2 + 1, window_length=32)
    with pytest.raises(UsageError, match="windows of 32"):
        Workbench(str(tiny_model_dir), texts, dtype="float32").test_windows()


def test_score_prints_one_json_document(
    small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--sparsity", "0.3,0.5", "--pattern", "row", "--json"]
    assert run(["score", "metrics", "wanda", "mul(W, W)", *small, *judged, *flags]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["dense"] + ["wanda", "mul(W, W)"] * 2
    assert {"name", "formula", "key", "sparsity", "pattern", "perplexity", "nll", "windows"} < set(
        rows[1]
    )
    assert all(row["perplexity"] > 1 for row in rows)


def test_score_without_names_measures_what_every_published_metric_reads(
    small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["score", "metrics", *small, *judged, "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["dense", *published]
    assert rows["sparsegpt"]["pattern"] == "layer"
    assert run(["score", "metrics", "sparsegpt", *small, *judged, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)[1]
    assert alone["nll"] == rows["sparsegpt"]["nll"] != rows["magnitude"]["nll"]
    flags = ["--order", "sequential", "--pattern", "row", "--json"]
    assert run(["score", "metrics", "sparsegpt", *small, *judged, *flags]) == 0
    assert json.loads(capsys.readouterr().out)[1]["perplexity"] > 1


def test_evolve_repeats_with_its_seed_and_resumes_and_simplifies(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*small, *judged, "--generations", "2", "--population", "8", "--json"]
    documents = []
    for name in ("a", "b"):
        assert run(["evolve", "metric", *flags, "--out", str(tmp_path / name)]) == 0
        documents.append(json.loads(capsys.readouterr().out)["formulas"])
    assert documents[0] == documents[1]
    names = [row["name"] for row in documents[0]]
    assert names[:2] == ["magnitude", "wanda"]
    assert names[-3:] == ["evolved 1", "evolved 2", "evolved 3"]
    best = documents[0][-3]

    assert run(["resume", str(tmp_path / "a"), "--generations", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generations"] == 3

    assert run(["simplify", str(tmp_path / "b"), "--top", "40", "--format", "json"]) == 0
    told = {row["formula"]: row["perplexity"] for row in json.loads(capsys.readouterr().out)}
    assert told[best["formula"]] == pytest.approx(best["validation_perplexity"], rel=1e-6)

    recipe = tmp_path / "b" / "recipe.json"
    out = tmp_path / "pruned"
    assert run(["prune", *small, "--recipe", str(recipe), "--out", str(out)]) == 0


@pytest.mark.parametrize("format", ["unicode", "latex", "mathml", "python", "json"])
def test_simplify_prints_every_format(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simplify", "wanda", "--format", format]) == 0
    assert "W" in capsys.readouterr().out


def test_simplify_reads_a_pruner_zero_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "best_tree.json"
    tree.write_text('{"data": "mul", "left": {"data": "W"}, "right": {"data": "X"}}')
    assert run(["simplify", str(tree)]) == 0
    assert "mul(abs(W), sqr(X))" in capsys.readouterr().out


def test_primitives_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["primitives", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name": "W", "arguments": [], "result": "Elements"}.items() <= rows[0].items()
    assert {"mul", "rowsum", "pz_div"} <= {row["name"] for row in rows}


BAD = [
    (["simplify", "nosuch(W)"], 2, "unknown name 'nosuch'"),
    (["simplify", "mul(W"], 2, "is missing"),
    (["simplify", "abs(" * 10_000], 2, "nested more than 64 deep"),
    (["simplify", "missing.json"], 2, "cannot read the tree 'missing.json'"),
    (["simplify", "wanda", "--format", "html"], 2, "html"),
    (["frobnicate"], 2, "frobnicate"),
    (["prune", "--sparsity", "half", "--out", "x"], 2, "--sparsity"),
    (["prune", "--sparsity", "1.0", "--out", "x"], 2, "1.0 lies outside [0, 1)"),
    (["prune", "--sparsity", "-0.1", "--out", "x"], 2, "-0.1 lies outside [0, 1)"),
    (["prune", "--metric", "wander", "--out", "x"], 2, "wander"),
    (["prune", "--model", "./no/such/dir", "--out", "x"], 2, "./no/such/dir"),
    (["prune", "--out", "."], 2, "exists"),
    (["prune", "--recipe", "no.json", "--out", "x"], 2, "no.json"),
    (["prune", "--recipe", "no.json", "--metric", "wanda", "--out", "x"], 2, "exclude"),
    (["prune", "--pattern", "2:0", "--out", "x"], 2, "2:0"),
    (["evolve", "metric", "--out", "."], 2, "exists"),
    (["evolve", "metric", "--out", "x", "--preset", "fast"], 2, "fast"),
    (["evolve", "metric", "--out", "x", "--time-limit", "soon"], 2, "soon"),
    (["evolve", "metric", "--out", "x", "--population", "0"], 2, "0"),
    (["resume", "no-such-run"], 2, "no-such-run"),
    (["score", "metrics", "--sparsity", "0.5,x"], 2, "'x' is not a number"),
    (["score", "metrics", "frob(W)"], 2, "frob"),
    (["eval", "--text", "./no-such.txt"], 2, "no-such.txt"),
    (["primitives", "--language", "french"], 2, "french"),
]


@pytest.mark.parametrize(("arguments", "code", "says"), BAD, ids=range(len(BAD)))
def test_bad_input_is_one_sentence_and_an_exit_code(
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert says in " ".join(printed.err.split())
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


MISFIT = [
    ["score", "metrics", "wanda"],
    ["score", "allocations", "uniform"],
    ["allocate", "uniform"],
    ["evolve", "metric", "--out", "x"],
]


@pytest.mark.parametrize("command", MISFIT, ids=" ".join)
def test_a_pattern_that_does_not_fit_is_said_before_anything_is_measured(
    command: list[str],
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpprune.discover.workbench.calibrate", None)
    monkeypatch.setattr("gpprune.discover.workbench.evaluate", None)
    assert run([*command, "--model", str(tiny_model_dir), "--pattern", "rows:7"]) == 2
    assert "64 output neurons are not divisible by 7" in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_text_too_short_for_a_window_is_said_with_its_size(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("The river flows .")
    assert run(["score", "metrics", *small, "--text", str(short)]) == 2
    assert "tokens" in capsys.readouterr().err


def test_empty_text_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n ")
    assert run(["score", "metrics", *small, "--text", str(empty)]) == 2
    assert "is empty" in capsys.readouterr().err


def test_nan_in_weights_names_the_layer_and_writes_nothing(
    small: list[str], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    broken = tmp_path / "broken"
    model.save_pretrained(broken)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((tiny_model_dir / name).read_bytes())
    out = tmp_path / "out"
    flags = ["--model", str(broken), *small[2:]]
    assert run(["prune", *flags, "--out", str(out)]) == 1
    assert "layers.1.mlp.up_proj" in capsys.readouterr().err
    assert not out.exists()


def test_paths_that_look_like_markup_are_printed_as_they_are(
    tiny_model_dir: Path,
    small: list[str],
    judged: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = tmp_path / "my models [v1] [" / "red]"
    shutil.copytree(tiny_model_dir, odd)
    flags = ["--model", str(odd), *small[2:]]
    assert run(["score", "metrics", "wanda", *flags, *judged]) == 0
    assert run(["prune", *flags, "--out", str(tmp_path / "[bold]out")]) == 0
    assert "[bold]out" in "".join(capsys.readouterr().out.split())


def ruined(tiny_model_dir: Path, to: Path, value: float) -> Path:
    """The tiny model with a final norm that makes every loss infinite or NaN."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.model.norm.weight.data.fill_(value)
    model.save_pretrained(to)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model_dir / name, to / name)
    return to


@pytest.mark.parametrize("value", [1e30, float("nan")])
def test_a_perplexity_that_is_no_number_is_null_in_json(
    tiny_model_dir: Path,
    judged: list[str],
    tmp_path: Path,
    value: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ruined(tiny_model_dir, tmp_path / "ruined", value)
    flags = ["--model", str(model), *judged, "--window-length", "32", "--json"]
    assert run(["eval", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] is None


@pytest.mark.parametrize(
    ("before", "after"),
    [("sparsity = 0.5", "sparsity = 0.7"), ("sparsity = 0.5", 'sparsity = "half"')],
)
def test_a_run_whose_problem_was_edited_is_refused(
    small: list[str],
    judged: list[str],
    tmp_path: Path,
    before: str,
    after: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    flags = [*small, *judged, "--generations", "0", "--population", "2", "--out", str(out)]
    assert run(["evolve", "metric", *flags]) == 0
    settings = out / "settings.toml"
    text = settings.read_text()
    assert before in text
    settings.write_text(text.replace(before, after))
    capsys.readouterr()
    assert run(["resume", str(out)]) == 1
    assert "put it back, or begin a new run" in " ".join(capsys.readouterr().err.split())


def test_kept_shots_are_removed_and_nothing_else_is(small: list[str], tmp_path: Path) -> None:
    beside = tmp_path / "out.shots"
    beside.mkdir()
    (beside / "mine.txt").write_text("kept")
    given = ["prune", *small, "--out", str(tmp_path / "out")]
    assert run([*given, "--shots", "2"]) == 2
    assert not (tmp_path / "out").exists()
    assert run(given) == 0
    assert (beside / "mine.txt").read_text() == "kept"
    others = ["prune", *small, "--out", str(tmp_path / "shots"), "--shots", "2"]
    assert run(others) == 0
    assert not (tmp_path / "shots.shots").exists()


def test_more_damping_than_asked_for_is_a_line(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["prune", *small, "--out", str(tmp_path / "out"), "--update", "sparsegpt"]
    few = ["--calibration-samples", "1", "--window-length", "8", "--damp-inputs", "0"]
    assert run([*given, *few]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "damped by" in line]
    assert lines and not any("Warning" in line or ".py" in line for line in lines)
