"""`--permute`: channels that change places before N:M prunes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from gpprune.cli.main import run
from gpprune.prune import linear_layers

FLAGS = ["--metric", "magnitude", "--pattern", "2:4", "--permute", "metric"]


def test_what_stays_is_told_and_the_file_is_inspected(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    assert run(["prune", *small, *FLAGS, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    table, _, _ = said.partition("magnitude ->")
    cells = [[cell.strip() for cell in line.split("│")] for line in table.splitlines()]
    rows = {cell[1]: cell[2:6] for cell in cells if len(cell) > 5}
    assert [(kind, *row[:2]) for kind, row in rows.items()] == [
        ("values", "4", "16"),
        ("hidden", "2", "96"),
        ("residual", "1", "64"),
    ]
    assert all(0.5 < float(row[2]) < float(row[3]) < 1 for row in rows.values())
    assert run(["inspect", str(out)]) == 0
    assert "channels permuted by metric" in capsys.readouterr().out
    weights = load_file(out / "model.safetensors")
    for name in linear_layers(AutoModelForCausalLM.from_pretrained(out)):
        assert int((weights[f"{name}.weight"].reshape(-1, 4) != 0).sum(1).max()) == 2


def test_the_recipe_says_it_and_repeats_it(small: list[str], tmp_path: Path) -> None:
    out, again, plain = (tmp_path / name for name in ("out", "again", "plain"))
    assert run(["prune", *small, *FLAGS, "--out", str(out)]) == 0
    path = out / "gpprune_recipe.json"
    stored = json.loads(path.read_text())
    assert stored["recipe"]["permute"] == "metric"
    assert stored["report"]["permutation"]["in_place"] == []
    assert run(["prune", *small, "--recipe", str(path), "--out", str(again)]) == 0
    assert run(["prune", *small, *FLAGS[:4], "--out", str(plain)]) == 0
    files = [(folder / "model.safetensors").read_bytes() for folder in (out, again, plain)]
    assert files[0] == files[1] != files[2]


def test_metrics_are_scored_with_their_channels_permuted(
    small: list[str], judged: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def rows(*flags: str) -> list[dict[str, object]]:
        given = ["score", "metrics", "magnitude", "wanda", "--pattern", "2:4", "--json", *flags]
        assert run([*given, *small, *judged]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found

    permuted, plain = rows("--permute", "metric"), rows()
    assert [row["permute"] for row in permuted] == [None, "metric", "metric"]
    assert permuted[0]["nll"] == plain[0]["nll"]
    assert all(
        one["nll"] != other["nll"] for one, other in zip(permuted[1:], plain[1:], strict=True)
    )


def test_a_pattern_without_groups_is_refused(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    assert run(["prune", *small, "--permute", "metric", "--out", str(out)]) == 2
    assert "'metric' is for a pattern such as 2:4, and this is 'row'" in capsys.readouterr().err
    assert run(["prune", *small, "--pattern", "2:4", "--permute", "wnda", "--out", str(out)]) == 2
    assert "there is no metric 'wnda'" in capsys.readouterr().err
    assert not out.exists()
