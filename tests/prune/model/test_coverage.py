"""What of the decoder blocks is pruned and what is not, against counts made by hand."""

from __future__ import annotations

import pytest
import torch
from tiny_families import tiny
from torch import nn

from gpprune.errors import GppruneError
from gpprune.prune import coverage, linear_layers

ATTENTION = 4 * 16 * 16
MLP = 3 * 16 * 24
FUSED = "experts stored as one 3-D parameter"
ROUTER = "a router"
FAMILIES = {
    # family: (weights in linear layers of both blocks, what is left of both blocks by role)
    "llama": (2 * (ATTENTION + MLP), {}),
    "gpt2": (2 * (ATTENTION + 2 * 16 * 24), {}),
    "opt": (2 * (ATTENTION + 2 * 16 * 24), {}),
    "mixtral": (2 * (ATTENTION + 4 * MLP), {"mlp.gate": (2 * 4 * 16, ROUTER)}),
    "granitemoe": (2 * (ATTENTION + 4 * MLP), {"block_sparse_moe.router": (2 * 4 * 16, ROUTER)}),
    "qwen2moe": (  # four experts and a shared one, whose gate has one output
        2 * (ATTENTION + 4 * 3 * 16 * 8 + 3 * 16 * 12),
        {
            "mlp.gate": (2 * 4 * 16, ROUTER),
            "mlp.shared_expert_gate": (2 * 16, "a gate of experts"),
        },
    ),
    "qwen3moe": (2 * (ATTENTION + 4 * 3 * 16 * 8), {"mlp.gate": (2 * 4 * 16, ROUTER)}),
    "gptoss": (  # its experts have biases [experts, out], which are vectors
        2 * (ATTENTION + 4 * MLP),
        {"mlp.router": (2 * 4 * 16, ROUTER)},
    ),
    "deepseek": (  # a dense block, then one with four experts and a shared one
        2 * (16 * 8 + 8 * 16 + 16 * 12 + 8 * 24 + 16 * 16) + MLP + 5 * 3 * 16 * 8,
        {"mlp.gate": (4 * 16, ROUTER)},
    ),
    "llama4": (  # its code multiplies by all experts at once
        2 * (ATTENTION + MLP),
        {
            "feed_forward.router": (2 * 4 * 16, ROUTER),
            "feed_forward.experts.gate_up_proj": (2 * 4 * 2 * 24 * 16, FUSED),
            "feed_forward.experts.down_proj": (2 * 4 * 16 * 24, FUSED),
        },
    ),
    "mamba": (
        2 * (16 * 64 + 32 * 12 + 4 * 32 + 32 * 16),
        {
            "mixer.A_log": (2 * 32 * 4, "a parameter of no linear layer"),
            "mixer.conv1d": (2 * 32 * 4, "the kernel of a convolution"),
        },
    ),
    "rwkv": (2 * (4 * 16 * 16 + 2 * 16 * 64 + 16 * 16), {}),  # vectors are kept as [1, 1, width]
    "gemma3": (2 * (ATTENTION + MLP), {}),  # the vision tower is none of the decoder's
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_the_blocks_is_counted(family: str) -> None:
    model = tiny(family)
    pruned, left = FAMILIES[family]
    found = coverage(model)
    assert found.pruned_size == pruned
    assert {role.role: (role.size, role.reason) for role in found.roles} == left
    assert found.left_size == sum(size for size, _ in left.values())
    assert found.size == found.pruned_size + found.left_size


@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_the_models_own(family: str) -> None:
    model = tiny(family)
    found = coverage(model)
    parameters = dict(model.named_parameters())
    for matrix in (*found.pruned, *found.left):
        assert parameters[matrix.name].numel() == matrix.size
    layers = {layer.parameter_name for layer in linear_layers(model).values()}
    assert {matrix.name for matrix in found.pruned} == layers
    assert not any(matrix.reason for matrix in found.pruned)


def test_a_reader_is_told_in_one_sentence() -> None:
    assert coverage(tiny("llama")).sentence == (
        "all weights of the decoder blocks are in linear layers"
    )
    # 11,264 of 11,392 weights; 128 in routers
    assert coverage(tiny("mixtral")).sentence == (
        "98.9 % of the weights of the decoder blocks are in linear layers that gpprune prunes; "
        "left alone: mlp.gate (1.1 %: a router)"
    )


class _Block(nn.Module):
    def __init__(self, shared: nn.Linear) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(100, 100) for _ in range(2))
        self.shared = shared
        self.scale = nn.Parameter(torch.ones(1, 1, 100))  # a vector


def _model() -> nn.Module:
    shared = nn.Linear(100, 100)
    model = nn.Module()
    model.blocks = nn.ModuleList(_Block(shared) for _ in range(3))
    model.others = nn.ModuleList(nn.Linear(1, 3) for _ in range(2))
    return model


def test_a_shared_weight_counts_once_and_numbers_do_not_part_roles() -> None:
    found = coverage(_model())
    assert found.pruned_size == (3 * 2 + 1) * 10_000
    assert {matrix.role for matrix in found.pruned} == {"experts.*", "shared"}
    assert [(role.role, role.parameters, role.size) for role in found.roles] == [("others.*", 2, 6)]


def test_another_list_of_blocks_is_left_and_said() -> None:
    found = coverage(tiny("hrm"))
    attention_and_mlp = found.pruned_size
    assert found.left_size == attention_and_mlp
    assert all("'model.H_module.layers'" in matrix.reason for matrix in found.left)
    assert found.sentence.startswith("50.0 %")


def test_a_share_is_neither_none_nor_all_unless_it_is() -> None:
    sentence = coverage(_model()).sentence
    assert sentence.startswith("over 99.9 %") and "(under 0.1 %:" in sentence


def test_zeros_are_counted_over_all_matrices() -> None:
    model = tiny("mixtral")
    found = coverage(model)
    assert found.zeros(model) == 0
    with torch.no_grad():
        next(iter(linear_layers(model).values())).weight[:, :8] = 0
        model.get_parameter("model.layers.1.mlp.experts.down_proj")[3, :, 0] = 0
        model.model.norm.weight[:] = 0
    assert found.zeros(model) == 16 * 8 + 16


def test_a_record_holds_sizes_and_roles() -> None:
    record = coverage(tiny("mamba")).as_dict()
    assert record["size"] == record["pruned_size"] + record["left_size"]
    assert record["left"][0] == {
        "role": "mixer.A_log",
        "reason": "a parameter of no linear layer",
        "parameters": 2,
        "size": 256,
    }


def test_a_model_that_cannot_be_pruned_is_named() -> None:
    with pytest.raises(GppruneError, match="JambaForCausalLM"):
        coverage(tiny("jamba"))
