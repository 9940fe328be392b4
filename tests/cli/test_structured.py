"""`gpprune evolve structured`: costs of whole units searched for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpprune.cli.main import run
from gpprune.primitives import unit_costs


def test_a_search_evolves_a_cost_that_prunes(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pruned = tmp_path / "run", tmp_path / "pruned"
    size = ["--population", "4", "--generations", "1"]
    assert run(["evolve", "structured", *small, *judged, *size, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["goal"], report["pattern"], report["sparsity"]) == ("metric", "mlp", 0.2)
    names = {row["name"] for row in report["formulas"]}
    assert names >= {*unit_costs(), "evolved 1"}
    assert all("masks_alone" in row for row in report["formulas"])
    recipe = str(out / "recipe.json")
    assert run(["prune", *small, "--recipe", recipe, "--out", str(pruned)]) == 0
    assert run(["shrink", str(pruned), "--out", str(tmp_path / "shrunk")]) == 0
    assert run(["resume", str(out), "--generations", "2", "--json"]) == 0


def test_what_shares_sparsity_out_takes_no_units(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, pattern in (("allocation", "mlp"), ("joint", "mlp"), ("structured", "free")):
        given = ["evolve", what, *small, "--pattern", pattern, "--out", str(tmp_path / what)]
        assert run(given) == 2
        assert repr(pattern) in capsys.readouterr().err
        assert not (tmp_path / what).exists()
