"""Coupled axes: which there are, and that a model with its units elsewhere computes the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.prune import Couplings, couplings, free_units, permute

BASE = {"vocab_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
BASE |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def made(config: str, **fields: Any) -> nn.Module:
    """A model whose every parameter is random, so that none may be left where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made_of = getattr(transformers, config)(**{**BASE, **fields})
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(made_of).eval()
        return shaken(model)


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
        parameter.add_(torch.randn_like(parameter) * spread)
    return model


@torch.no_grad()
def logits(model: nn.Module, seed: int = 1) -> Tensor:
    tokens = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(seed))
    found: Tensor = model(input_ids=tokens, use_cache=False).logits.double()
    return found


def kinds(found: Couplings) -> Counter[tuple[str, int]]:
    return Counter((axis.kind, axis.units) for axis in found.offered)


def check_permutations(model: nn.Module, found: Couplings, seed: int = 0) -> None:
    """All offered axes at once, each in a random order, leave other logits as they are too."""
    generator = torch.Generator().manual_seed(seed)
    before = logits(model)
    for axis in found.offered:
        permute(model, axis, torch.randperm(axis.units, generator=generator))
    assert float((logits(model) - before).norm() / before.norm()) < 1e-5


LLAMA = {"hidden_size": 48, "intermediate_size": 80}


@given(
    st.sampled_from(["LlamaConfig", "Qwen3Config", "Qwen2Config", "MistralConfig"]),
    st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3)]),
    st.sampled_from([4, 8]),
    st.booleans(),
    st.booleans(),
)
def test_grouped_heads_biases_and_ties(
    config: str, heads: tuple[int, int], head_dim: int, bias: bool, tied: bool
) -> None:
    queries, keys = heads
    fields = {"num_attention_heads": queries, "num_key_value_heads": keys, "head_dim": head_dim}
    fields |= {"attention_bias": bias, "mlp_bias": bias} if config == "LlamaConfig" else {}
    if config == "Qwen2Config":  # has no head_dim of its own
        fields["hidden_size"] = queries * head_dim
    model = made(config, **{**LLAMA, **fields}, tie_word_embeddings=tied)
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    found = couplings(model)
    assert not found.refused
    width = fields.get("hidden_size", 48)
    wanted = {("hidden", 80): 2, ("residual", width): 1, ("values", head_dim): 2 * keys}
    wanted |= {("heads", keys): 2} if keys > 1 else {}
    assert kinds(found) == wanted
    assert all(torch.equal(model.state_dict()[name], value) for name, value in bits.items())
    check_permutations(model, found)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("gpt2", {("values", 8): 4, ("heads", 2): 2, ("hidden", 24): 2, ("residual", 16): 1}),
        ("opt", {("values", 8): 4, ("heads", 2): 2, ("hidden", 24): 2, ("residual", 16): 1}),
        ("gemma3", {("values", 8): 4, ("heads", 2): 2, ("hidden", 24): 2, ("residual", 16): 1}),
        ("git", {("values", 8): 4, ("heads", 2): 2, ("hidden", 24): 2}),
        ("mixtral", {("values", 8): 4, ("heads", 2): 2, ("residual", 16): 1}),
        ("deepseek", {("hidden", 24): 1, ("hidden", 8): 1, ("residual", 16): 1}),
        ("mamba", {}),
        ("rwkv", {("hidden", 64): 2}),
        ("qwen2moe", {("values", 8): 4, ("heads", 2): 2, ("hidden", 12): 2, ("residual", 16): 1}),
    ],
)
def test_families_with_fused_layers_norms_and_experts(
    family: str, wanted: dict[tuple[str, int], int]
) -> None:
    model = shaken(tiny(family))
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    found = couplings(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in bits.items())
    assert {axis: count for axis, count in kinds(found).items() if axis in wanted} == wanted
    check_permutations(model, found)


@pytest.mark.parametrize("queries", [2, 4])
def test_queries_keys_and_values_of_one_layer_side_by_side(queries: int) -> None:
    fields = {"n_embd": 8 * queries, "n_head": queries, "n_inner": 24, "n_layer": 2}
    model = made("GPTBigCodeConfig", n_positions=64, multi_query=True, **fields)
    found = couplings(model)
    wanted = {("values", 8): 2, ("hidden", 24): 2, ("residual", 8 * queries): 1}
    assert kinds(found) == wanted and not found.refused
    check_permutations(model, found)


def test_a_model_that_names_no_embedding_has_no_axes() -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4)
    model.get_input_embeddings = missing  # type: ignore[assignment]
    (refused,) = couplings(model).refused
    assert refused.why == "the model names no embedding of tokens"


def missing() -> None:
    raise NotImplementedError


def test_units_lie_where_they_should() -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4, num_key_value_heads=2)
    axes = {(axis.kind, axis.name): axis for axis in couplings(model).offered}
    hidden = axes["hidden", "model.layers.1.mlp.down_proj"]
    inner = "model.layers.1.mlp"
    assert {(place.parameter, place.dim) for place in hidden.places} == {
        (f"{inner}.down_proj.weight", 1),
        (f"{inner}.gate_proj.weight", 0),
        (f"{inner}.up_proj.weight", 0),
    }
    heads = axes["heads", "model.layers.0.self_attn.o_proj"]
    members = {place.parameter.split(".")[-2]: place.index for place in heads.places}
    assert {name: index.shape[1] for name, index in members.items()} == {
        **{"o_proj": 24, "q_proj": 24},
        **{"k_proj": 12, "v_proj": 12},
    }
    assert members["q_proj"].tolist() == [list(range(24)), list(range(24, 48))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_proven_on_a_copy(dtype: torch.dtype) -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4).to(dtype)
    assert sum(kinds(couplings(model)).values()) == 8 + 2 + 2 + 1
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_what_nothing_reads_is_free() -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4, num_key_value_heads=2)
    axes = {axis.kind: axis for axis in couplings(model).offered if "layers.1" in axis.name}
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight")[:, [3, 70]] = 0
        model.get_parameter("model.layers.1.self_attn.o_proj.weight")[:, 24:] = 0
    assert free_units(model, axes["hidden"]).nonzero().flatten().tolist() == [3, 70]
    assert free_units(model, axes["heads"]).tolist() == [False, True]
    before = logits(model)
    with torch.no_grad():
        for name in ("hidden", "heads"):
            free = free_units(model, axes[name])
            for place in axes[name].places[1:]:
                values = model.get_parameter(place.parameter).movedim(place.dim, 0)
                values[place.index[free].flatten()] = 7.0
    assert torch.equal(logits(model), before)


def test_a_sink_of_each_head_keeps_heads_where_they_are() -> None:
    found = couplings(shaken(tiny("gptoss")))
    assert ("heads", 2) not in kinds(found)
    reasons = {axis.kind: axis.why for axis in found.refused}
    assert reasons["heads"] == "permuting it changes the logits by more than 1e-05 of their norm"


def test_what_mixes_channels_is_refused() -> None:
    found = couplings(shaken(tiny("deepseek")))
    reasons = {axis.name.rpartition(".")[2]: axis.why for axis in found.refused}
    assert "8 outputs of a layer reach one of its inputs" in reasons["q_b_proj"]  # a norm between
    check_permutations(shaken(tiny("deepseek")), found)


def test_a_layer_that_reads_in_another_order_is_refused() -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4)
    mlp = model.model.layers[0].mlp  # type: ignore[union-attr, index]
    act = mlp.act_fn  # type: ignore[union-attr]
    mlp.act_fn = Reversed(act)  # type: ignore[union-attr]
    found = couplings(model)
    refused = {axis.name: axis.why for axis in found.refused}
    assert "in another order" in refused["model.layers.0.mlp.down_proj"]
    assert kinds(found)["hidden", 80] == 1
    check_permutations(model, found)


def test_a_layer_that_no_token_came_to_proves_nothing() -> None:
    model = made("LlamaConfig", **LLAMA, num_attention_heads=4)
    mlp = model.get_submodule("model.layers.0.mlp")
    mlp.expert = nn.Linear(48, 48, bias=False)  # in the residual stream's width, and never called
    found = couplings(model)
    refused = {axis.kind: axis for axis in found.refused}
    assert refused.keys() == {"hidden", "residual"}
    assert refused["hidden"].name == "model.layers.0.mlp.expert"
    assert "no token came to it" in refused["residual"].why
    check_permutations(model, found)


class Reversed(nn.Module):
    """An activation that turns the order of its channels around."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.act = act

    def forward(self, value: Tensor) -> Tensor:
        found: Tensor = self.act(value).flip(-1)
        return found
