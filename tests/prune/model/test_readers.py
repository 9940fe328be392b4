"""Layers of a block that read one tensor, found from what runs."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from gpprune.prune import linear_layers
from gpprune.prune.model.readers import input_groups
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner

GROUPS = {
    "llama": ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc", "c_proj"],
    "opt": ["k_proj v_proj q_proj", "out_proj", "fc1", "fc2"],
}


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", list(GROUPS))
def test_readers_of_one_tensor_are_a_group(family: str, sequences: Tensor) -> None:
    model = tiny(family)
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 1}
    with quiet_model(model), torch.no_grad():
        groups = list(input_groups(BlockRunner(model, sequences), 1, layers))
    found = [sorted(name.rpartition(".")[2] for name in group) for group in groups]
    assert found == [sorted(names.split()) for names in GROUPS[family]]
    assert not any(layer.module._forward_pre_hooks for layer in layers.values())


def test_experts_are_groups_of_their_own_and_idle_ones_come_last(sequences: Tensor) -> None:
    model = tiny("deepseek")
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 1}
    with quiet_model(model), torch.no_grad():
        groups = list(input_groups(BlockRunner(model, sequences[:1, :2]), 1, layers))
    assert sorted(name for group in groups for name in group) == sorted(layers)
