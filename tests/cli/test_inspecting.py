"""`gpprune inspect`: its table, its document and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import FAMILIES
from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

from gpprune.cli.main import run

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def pruned(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    out = tmp_path / "pruned"
    flags = ["--metric", "magnitude", "--pattern", "2:4", "--update", "swaps"]
    assert run(["prune", *small, *flags, "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def test_a_row_a_role_and_the_record(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(pruned)]) == 0
    said = capsys.readouterr()
    roles, _, axes = said.out.partition("coupled axes")
    rows = [line.split("│")[1:-1] for line in roles.splitlines() if line.startswith("│")]
    assert [row[0].strip().split(".")[-1] for row in rows] == [*ROLES, "all"]
    assert {tuple(cell.strip() for cell in row[1:5]) for row in rows} == {
        ("0.5000", "0.500-0.500", "2", "4")
    }
    kinds = [line.split("│")[1:5] for line in axes.splitlines() if line.startswith("│")]
    found = [tuple(cell.strip() for cell in row) for row in kinds if row[0].strip()]
    wanted = [("values", "4", "16"), ("heads", "2", "2"), ("hidden", "2", "96")]
    assert [row[:3] for row in found] == [*wanted, ("residual", "1", "64")]
    assert "by magnitude, pattern 2:4, sparsity 0.5, update swaps" in said.out
    agrees = "the zeros of every layer, every group of 2:4, the weights' SHA-256"
    assert f"as the record says: {agrees}" in said.out


def test_a_row_a_layer(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(pruned), "--layers"]) == 0
    said = capsys.readouterr().out
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        assert f" {name} " in said


def test_a_dense_model_has_no_record(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tiny_model_dir)]) == 0
    assert "no record of gpprune lies beside them" in capsys.readouterr().out


def test_what_is_not_as_recorded_fails(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pruned / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, :4] = 1.0
    save_file(weights, path, metadata={"format": "pt"})
    assert run(["inspect", str(pruned), "--json"]) == 1
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert len(document["faults"]) == 3 and len(document["layers"]) == 14
    assert document["record"]["recipe"]["metric"] == "magnitude"
    assert "is not what its record says: 'model.layers.0.mlp.up_proj' breaks" in said.err
    assert "and 2 more such" in said.err
    assert run(["inspect", str(pruned)]) == 1
    assert "as the record says:" not in capsys.readouterr().out


def test_what_is_not_offered_is_said(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sinks"
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(out)
    fields = {**FAMILIES["gptoss"][1], "vocab_size": 512}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = GptOssForCausalLM(GptOssConfig(**fields))
        for parameter in model.parameters():  # as they come, attention hardly matters
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(out)
    assert run(["inspect", str(out)]) == 0
    assert "no coupled axis of the kind heads in 2 places: permuting" in capsys.readouterr().out


def test_a_missing_directory_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "there is no model directory" in capsys.readouterr().err
