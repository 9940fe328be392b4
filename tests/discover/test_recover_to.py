"""Recovering a checkpoint as the command does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from short_texts import short_texts
from typer.testing import CliRunner

from gpprune.cli import run
from gpprune.cli.main import app
from gpprune.discover import inspect_checkpoint, prune_to, recover_to
from gpprune.errors import UsageError
from gpprune.prune import Adapters, Recipe, linear_layers, load_model

TEXTS = short_texts(calibration_samples=4, window_length=32)


@pytest.fixture
def pruned(tiny_model_dir: Path, tmp_path: Path) -> Path:
    recipe = Recipe(metric="wanda", pattern="2:4")
    prune_to(tmp_path / "pruned", recipe, model=str(tiny_model_dir), texts=TEXTS)
    return tmp_path / "pruned"


@pytest.mark.parametrize(
    ("adapters", "aim"),
    [(None, "kl"), (Adapters(rank=2), "kl"), (None, "blocks")],
    ids=["weights", "adapters", "blocks"],
)
def test_every_zero_stays_and_the_record_goes_on(
    pruned: Path, adapters: Adapters | None, aim: str, tmp_path: Path
) -> None:
    options = {"texts": TEXTS, "aim": aim}
    found = recover_to(tmp_path / "out", str(pruned), epochs=3, adapters=adapters, **options)
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
    again = recover_to(tmp_path / "again", str(tmp_path / "out"), written=2, **options)
    assert (again.sequences, again.written, again.zeros) == (6, 2, found.zeros)


@pytest.mark.parametrize("aims", [("kl", "blocks"), ("blocks", "kl")])
def test_what_another_loss_has_trained_is_kept(
    aims: tuple[str, str], pruned: Path, tmp_path: Path
) -> None:
    def breaking(label: str, done: int, total: int) -> None:
        if label == "recovering" and done == total // 2 + 1:
            raise KeyboardInterrupt

    out, options = tmp_path / "out", {"texts": TEXTS, "epochs": 2}
    with pytest.raises(KeyboardInterrupt):
        recover_to(out, str(pruned), aim=aims[0], progress=breaking, **options)
    kept = {path.name for path in (tmp_path / "out.training").iterdir()}
    assert kept
    with pytest.raises(UsageError, match="holds another training"):
        recover_to(out, str(pruned), aim=aims[1], **options)
    assert {path.name for path in (tmp_path / "out.training").iterdir()} == kept
    recover_to(out, str(pruned), aim=aims[0], **options)
    assert not (tmp_path / "out.training").exists()


def test_the_dense_model_must_be_known_and_fit(
    pruned: Path, tmp_path: Path, tiny_gpt2_dir: Path
) -> None:
    (pruned / "gpprune_recipe.json").unlink()
    with pytest.raises(UsageError, match="says what it was pruned from: name the dense model"):
        recover_to(tmp_path / "out", str(pruned), texts=TEXTS)
    with pytest.raises(UsageError, match="there is no loss 'mse'"):
        recover_to(tmp_path / "out", str(pruned), texts=TEXTS, aim="mse")
    recover_to(tmp_path / "out", str(pruned), texts=TEXTS, aim="next-token")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "gpprune_recipe.json").exists()
    with pytest.raises(UsageError, match="is of no use"):
        recover_to(tmp_path / "b", str(pruned), dense="any", texts=TEXTS, aim="next-token")
    with pytest.raises(UsageError, match="rank 8 are not trained by the loss 'blocks'"):
        recover_to(tmp_path / "b", str(pruned), texts=TEXTS, aim="blocks", adapters=Adapters())


def test_a_dense_model_that_is_another_now_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_dir, tmp_path / "dense")
    prune_to(tmp_path / "pruned", Recipe(sparsity=0.5), model=str(tmp_path / "dense"), texts=TEXTS)
    model = load_model(str(tmp_path / "dense")).model
    with torch.no_grad():
        next(iter(linear_layers(model).values())).weight[0, 0] += 1
    model.save_pretrained(tmp_path / "dense")  # type: ignore[operator]
    with pytest.raises(UsageError, match="has other weights now"):
        recover_to(tmp_path / "out", str(tmp_path / "pruned"), texts=TEXTS)
    shutil.rmtree(tmp_path / "dense")
    with pytest.raises(UsageError, match="names it as the dense model"):
        recover_to(tmp_path / "out", str(tmp_path / "pruned"), texts=TEXTS)
    assert not (tmp_path / "out.training").exists()


def test_a_record_keeps_what_was_done_before(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = Recipe(sparsity=0.5, shots=2)
    prune_to(tmp_path / "pruned", recipe, model=str(tiny_model_dir), texts=TEXTS)
    recover_to(tmp_path / "out", str(tmp_path / "pruned"), texts=TEXTS, adapters=Adapters(4))
    before, after = (
        json.loads((tmp_path / name / "gpprune_recipe.json").read_text())
        for name in ("pruned", "out")
    )
    assert after["report"]["shots"] == before["report"]["shots"]
    (training,) = after["trainings"]
    assert training["adapters"]["rank"] == 4 and training["dense"] == str(tiny_model_dir)
    assert "for 1 epoch" in inspect_checkpoint(str(tmp_path / "out")).record.sentence  # type: ignore[union-attr]


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


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layer", "q_proj"], "--layer q_proj is for adapters: give --rank too"),
        (["--rank", "0"], "rank 0"),
        (["--rank", "2", "--layer", "nothing"], "no layer is called 'nothing'"),
        (["--rate", "nan"], "the learning rate nan lies outside"),
        (["--loss", "mse"], "there is no loss 'mse'"),
    ],
)
def test_wrong_flags_are_named(
    flags: list[str],
    said: str,
    pruned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    how = ["--samples", "2", "--window-length", "32", "--out", str(tmp_path / "out")]
    assert run(["recover", str(pruned), *how, *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/", "."])
def test_an_output_without_a_name_is_refused(
    out: str, pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["recover", str(pruned)], ["prune", "--model", str(pruned), "--shots", "2"]):
        assert run([*command, "--out", out]) == 2
        assert f"gpprune: the output {out!r}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_was(pruned: Path, tmp_path: Path) -> None:
    how = ["--samples", "8", "--window-length", "64", "--epochs", "20", "--rate", "1e-3"]
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
