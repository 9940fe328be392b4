"""`gpprune shrink`: dead units taken out of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gpprune.cli.main import run


@pytest.fixture
def dead(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A pruned checkpoint of which nothing reads some hidden channels, more in the first block."""
    out = tmp_path / "dead"
    flags = ["--metric", "magnitude", "--pattern", "2:4", "--out", str(out)]
    assert run(["prune", *small, *flags]) == 0
    path = out / "model.safetensors"
    weights = load_file(path)
    for block, count in enumerate((30, 10)):
        weights[f"model.layers.{block}.mlp.down_proj.weight"][:, 3 : 3 + count] = 0
    save_file(weights, path, {"format": "pt"})
    capsys.readouterr()
    return out


def test_the_small_model_is_judged_as_the_large_one(
    dead: Path, judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss(model: Path) -> float:
        assert run(["eval", "--model", str(model), *judged, "--window-length", "32", "--json"]) == 0
        return float(json.loads(capsys.readouterr().out)["nll"])

    before = loss(dead)
    out = tmp_path / "small"
    assert run(["shrink", str(dead), "--out", str(out)]) == 0
    said = capsys.readouterr()
    cells = [[cell.strip() for cell in line.split("│")] for line in said.out.splitlines()]
    rows = {cell[1]: cell[2:4] for cell in cells if len(cell) > 4}
    assert rows["hidden, of which 40 dead"] == ["192", "152"]
    weights = load_file(dead / "model.safetensors")
    count = sum(values.numel() for values in weights.values())
    assert rows["parameters"] == [f"{count:,}", f"{count - 40 * 3 * 64:,}"]
    assert set(rows) > {"bytes", "tokens read a second"}
    assert "plain transformers does not" in said.err
    assert loss(out) == pytest.approx(before, rel=1e-5)
    assert run(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "then shrunk" in shown
    assert "as the record says: the zeros of every layer, the weights' SHA-256" in shown


def test_a_uniform_one_is_loaded_by_plain_transformers(
    dead: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert run(["shrink", str(dead), "--uniform", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert "20 dead units stay, so that all blocks are alike" in said.err
    found = json.loads(said.out)
    assert found["shrinking"]["plain"]
    assert found["after"]["bytes"] < found["before"]["bytes"]
    large, small = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (dead, out))
    assert small.config.intermediate_size == large.config.intermediate_size - 10
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(small(tokens).logits, large(tokens).logits, atol=1e-4)


def test_what_is_small_is_pruned_on(
    dead: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "small", tmp_path / "again"
    assert run(["shrink", str(dead), "--out", str(out)]) == 0
    flags = ["--sparsity", "0.7", "--update", "least-squares", "--out", str(again)]
    assert run(["prune", *small, "--model", str(out), *flags]) == 0
    assert run(["inspect", str(again)]) == 0
    shapes = [json.loads((path / "gpprune_shapes.json").read_text()) for path in (out, again)]
    assert shapes[0] == shapes[1]


def test_pruned_units_are_taken_out(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units, out = tmp_path / "units", tmp_path / "out"
    flags = ["--pattern", "mlp,heads", "--metric", "div(Gx, Ai)", "--sparsity", "0.3"]
    flags += ["--update", "refit", "--order", "corrected"]
    assert run(["prune", *small, *flags, "--out", str(units)]) == 0
    capsys.readouterr()
    assert run(["inspect", str(units), "--json"]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert run(["shrink", str(units), "--out", str(out), "--json"]) == 0
    shrunk = json.loads(capsys.readouterr().out)
    assert inspected["faults"] == []
    assert shrunk["before"]["parameters"] - shrunk["after"]["parameters"] == inspected["zeros"]
    flags = ["--pattern", "mlp", "--sparsity", "0.1,0.3", "--json"]
    assert run(["score", "metrics", "wanda", *small, *judged, *flags]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]["nll"] < rows[1]["nll"] < rows[2]["nll"]


def test_bad_paths_are_named(
    dead: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["shrink", str(tmp_path / "none"), "--out", str(tmp_path / "small")]) == 2
    assert "none" in capsys.readouterr().err
    assert run(["shrink", str(dead), "--out", str(dead)]) == 2
    assert "exists: choose another --out" in capsys.readouterr().err
