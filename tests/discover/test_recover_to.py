"""Recovering a checkpoint as the command does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gpprune.cli.main import app
from gpprune.discover import Texts, inspect_checkpoint, prune_to, recover_to
from gpprune.errors import UsageError
from gpprune.prune import Adapters, Recipe, linear_layers, load_model

TEXTS = Texts(calibration_samples=4, window_length=32)


@pytest.fixture
def pruned(tiny_model_dir: Path, tmp_path: Path) -> Path:
    recipe = Recipe(metric="wanda", pattern="2:4")
    prune_to(tmp_path / "pruned", recipe, model=str(tiny_model_dir), texts=TEXTS)
    return tmp_path / "pruned"


@pytest.mark.parametrize("adapters", [None, Adapters(rank=2)], ids=["weights", "adapters"])
def test_every_zero_stays_and_the_record_goes_on(
    pruned: Path, adapters: Adapters | None, tmp_path: Path
) -> None:
    found = recover_to(tmp_path / "out", str(pruned), texts=TEXTS, epochs=3, adapters=adapters)
    assert len(found.losses) == 3 and found.losses[-1] < found.losses[0]
    before, after = (load_model(str(path)).model for path in (pruned, tmp_path / "out"))
    others = linear_layers(after)
    for name, layer in linear_layers(before).items():
        assert not others[name].weight[layer.weight == 0].any()
        assert not torch.equal(others[name].weight, layer.weight)
    inspection = inspect_checkpoint(str(tmp_path / "out"))
    assert not inspection.faults
    assert inspection.record is not None
    assert "2:4" in inspection.record.sentence
    assert inspection.record.sentence.endswith("then trained for 3 epochs")
    assert not (tmp_path / "out.training").exists()
    again = recover_to(tmp_path / "again", str(tmp_path / "out"), texts=TEXTS, written=2)
    assert (again.sequences, again.written, again.zeros) == (6, 2, found.zeros)


def test_the_dense_model_must_be_known_and_fit(
    pruned: Path, tmp_path: Path, tiny_gpt2_dir: Path
) -> None:
    (pruned / "gpprune_recipe.json").unlink()
    with pytest.raises(UsageError, match="name the dense model, or recover by the loss"):
        recover_to(tmp_path / "out", str(pruned), texts=TEXTS)
    with pytest.raises(UsageError, match="there is no loss 'mse'"):
        recover_to(tmp_path / "out", str(pruned), texts=TEXTS, aim="mse")
    recover_to(tmp_path / "out", str(pruned), texts=TEXTS, aim="next-token")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "gpprune_recipe.json").exists()


def test_the_command_says_what_it_did(pruned: Path, tmp_path: Path) -> None:
    how = ["--samples", "3", "--window-length", "32", "--epochs", "2"]
    done = CliRunner().invoke(app, ["recover", str(pruned), "--out", str(tmp_path / "a"), *how])
    assert done.exit_code == 0, done.output
    assert "weights are 0, as before" in done.output
    more = ["--rank", "2", "--layer", "q_proj", "--loss", "next-token", "--json"]
    done = CliRunner().invoke(
        app, ["recover", str(pruned), "--out", str(tmp_path / "b"), *how, *more]
    )
    found = json.loads(done.stdout)
    assert len(found["losses"]) == 2 and found["sequences"] == 3


def test_a_killed_training_goes_on_where_it_was(pruned: Path, tmp_path: Path) -> None:
    how = ["--samples", "8", "--window-length", "64", "--epochs", "40", "--rate", "1e-3"]
    command = [sys.executable, "-m", "gpprune", "recover", str(pruned), *how]
    kept = tmp_path / "out.training" / "trained.safetensors"
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")]) as process:
        for _ in range(600):
            if kept.exists() or process.poll() is not None:
                break
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    assert kept.exists() and not (tmp_path / "out").exists()
    subprocess.run([*command, "--out", str(tmp_path / "out")], check=True)
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "whole")]
    assert weights[0] == weights[1]
    assert not kept.exists()
