from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_families import tiny
from torch import nn

from gpprune.errors import GppruneError
from gpprune.prune import blocks, check_weights, linear_layers, load_model


def test_a_llama_has_seven_layers_a_block_in_model_order(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir)).model
    layers = linear_layers(model)
    assert len(blocks(model)) == 2
    assert len(layers) == 14
    assert [layer.block for layer in layers.values()] == [0] * 7 + [1] * 7
    assert all(name == layer.name for name, layer in layers.items())
    assert not any("embed" in name or "head" in name for name in layers)
    names = [name for name, _ in model.named_modules() if name in layers]
    assert names == list(layers)


def test_a_gpt2_weight_is_read_and_written_as_out_by_in(tiny_gpt2_dir: Path) -> None:
    model = load_model(str(tiny_gpt2_dir)).model
    layer = linear_layers(model)["transformer.h.1.mlp.c_fc"]
    assert (layer.out_features, layer.in_features) == (96, 48)
    x = torch.randn(3, 48)
    expected = x @ layer.weight.t() + layer.module.bias
    assert torch.allclose(layer.module(x), expected, atol=1e-6)
    layer.write(torch.eye(96, 48))
    assert torch.equal(layer.module(x)[:, :48], x + layer.module.bias[:48])


class _Block(nn.Module):
    def __init__(self, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(4, experts)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(experts))


def test_a_blocks_experts_are_layers_and_not_blocks() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.ModuleList(_Block(9) for _ in range(3)))
    assert [type(block) for block in blocks(model)] == [_Block] * 3
    assert len(linear_layers(model)) == 27  # the gate of nine outputs is their router


@pytest.mark.parametrize(
    "model",
    [
        nn.Embedding(5, 4),
        nn.Linear(4, 4),
        nn.ModuleDict({"norms": nn.ModuleList(nn.LayerNorm(4) for _ in range(6))}),
    ],
)
def test_a_model_with_nothing_to_prune_is_named(model: nn.Module) -> None:
    with pytest.raises(GppruneError, match=type(model).__name__):
        linear_layers(model)


def _blocks_name(model: nn.Module) -> str:
    found = blocks(model)
    return next(name for name, module in model.named_modules() if module is found)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("mamba", "backbone.layers"),
        ("mixtral", "model.layers"),
        ("deepseek", "model.layers"),
        # Beside a vision tower of more blocks than the language model.
        ("gemma3", "model.language_model.layers"),
        ("git", "git.encoder.layer"),
    ],
)
def test_the_blocks_are_the_language_models(family: str, name: str) -> None:
    model = tiny(family)
    assert _blocks_name(model) == name
    assert len(blocks(model)) == 2
    assert all(layer.startswith(f"{name}.") for layer in linear_layers(model))


class _OddDecoder(nn.Module):
    """A model whose `get_decoder` gives its head, as ModernBERT's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.decoder = nn.Linear(4, 9)

    def get_decoder(self) -> nn.Module:
        return self.decoder


def test_a_decoder_without_blocks_is_not_believed() -> None:
    assert _blocks_name(_OddDecoder()) == "layers"


def test_blocks_of_several_classes_are_named() -> None:
    with pytest.raises(GppruneError, match="JambaMambaDecoderLayer") as caught:
        blocks(tiny("jamba"))
    assert "'model.layers'" in str(caught.value)
    assert "JambaAttentionDecoderLayer" in str(caught.value)


class _Adapted(nn.Module):
    """Blocks of two classes, one of which holds a list of adapters (Zamba 2)."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Module()
        shared.adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), shared])


def test_a_list_inside_blocks_of_several_classes_is_not_taken_for_blocks() -> None:
    with pytest.raises(GppruneError, match="'layers'"):
        blocks(_Adapted())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_damaged_weight_is_named(tiny_model_dir: Path, value: float) -> None:
    layers = linear_layers(load_model(str(tiny_model_dir)).model)
    check_weights(layers)
    name = "model.layers.1.mlp.up_proj"
    layers[name].weight[3, 5] = value
    with pytest.raises(GppruneError, match=name):
        check_weights(layers)


def test_a_quantised_weight_is_refused(tiny_model_dir: Path) -> None:
    layers = linear_layers(load_model(str(tiny_model_dir)).model)
    layer = layers["model.layers.0.mlp.up_proj"]
    layer.module.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(GppruneError, match="unquantised"):
        check_weights(layers)
