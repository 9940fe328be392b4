"""Channels that are permuted before N:M prunes: what the model computes, keeps and becomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from shaken_models import KINDS, logits, shaken
from tiny_families import tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import Recipe, linear_layers, permute_channels, prune_model


@pytest.fixture
def sequences() -> Tensor:
    return text()


def text() -> Tensor:
    return torch.randint(1, 64, (4, 24), generator=torch.Generator().manual_seed(0))


def kept_of(model: nn.Module, size: int) -> int:
    """The most weights that are not zero in any group of consecutive inputs."""
    return max(
        int((layer.weight.reshape(layer.out_features, -1, size) != 0).sum(2).max())
        for layer in linear_layers(model).values()
    )


@settings(max_examples=40)  # some of 0.3 s each
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 2, 4]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["2:4", "1:4", "4:8"]),
    st.sampled_from(["magnitude", "wanda", "ria"]),
)
def test_the_dense_model_computes_what_it_did(
    kind: str, keys: int, bias: bool, tied: bool, pattern: str, metric: str
) -> None:
    model = shaken(kind, keys, bias=bias, tied=tied)
    recipe, before = Recipe(metric=metric, pattern=pattern, permute="metric"), logits(model)
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    found = permute_channels(model, recipe, text())
    assert float((logits(model) - before).norm() / before.norm()) < 1e-5
    assert {axis.kind for axis in found.axes} == {"hidden", "values", "residual"}
    assert not found.in_place
    assert all(axis.after >= axis.before - 1e-6 for axis in found.axes)
    assert sum(axis.after > axis.before + 1e-3 for axis in found.axes) > 1
    assert any(not torch.equal(model.state_dict()[name], value) for name, value in bits.items())


@pytest.mark.parametrize(
    ("order", "update"),
    [("dense", "none"), ("sequential", "none"), ("dense", "sparsegpt"), ("corrected", "refit")],
)
def test_what_was_permuted_is_pruned_as_any_model(
    sequences: Tensor, order: str, update: str
) -> None:
    recipe = Recipe(metric="ria", pattern="2:4", permute="metric", update=update)
    model, by_hand = shaken("llama", 2), shaken("llama", 2)
    report = prune_model(model, recipe, sequences, order=order)
    permute_channels(by_hand, recipe, sequences)
    prune_model(by_hand, recipe.model_copy(update={"permute": None}), sequences, order=order)
    for name, value in model.state_dict().items():
        assert torch.equal(value, by_hand.state_dict()[name]), name
    assert report.sparsity == 0.5 and kept_of(model, 4) == 2
    assert report.permutation is not None and report.permutation.axes
    stored = json.loads(json.dumps(report.as_dict()))["permutation"]
    assert len(stored["axes"]) == len(report.permutation.axes) and stored["in_place"] == []


def test_more_of_the_scores_stay_than_without(sequences: Tensor) -> None:
    def stays(permute: str | None) -> float:
        model = shaken("llama", 2)
        prune_model(model, Recipe(metric="magnitude", pattern="2:4", permute=permute), sequences)
        return sum(float(layer.weight.abs().sum()) for layer in linear_layers(model).values())

    assert stays("metric") > 1.01 * stays(None)


def test_another_metric_may_say_what_is_to_be_kept(sequences: Tensor) -> None:
    def orders(recipe: Recipe) -> list[tuple[int, ...]]:
        found = permute_channels(shaken("llama", 2), recipe, sequences)
        return [axis.order for axis in found.axes]

    wanda = Recipe(metric="wanda", pattern="2:4", permute="metric")
    by_obs = Recipe(metric="wanda", pattern="2:4", permute="obs")
    obs = Recipe(metric="obs", pattern="2:4", permute="metric")
    assert orders(by_obs) == orders(obs) != orders(wanda)
    assert by_obs.permutes_by == {"Ai"} and by_obs.reads == {"X"}


def test_inputs_that_stay_are_named(sequences: Tensor) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,  # no whole groups of 4
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    recipe = Recipe(metric="magnitude", pattern="2:4", permute="metric")
    report = prune_model(model, recipe, sequences)
    assert report.permutation is not None
    assert report.permutation.in_place == ("model.layers.0.self_attn.o_proj",)
    assert "1 layers keep inputs" in report.permutation.sentence
    assert {axis.kind for axis in report.permutation.axes} == {"hidden", "residual"}


class _Killed(BaseException):
    pass


def killed_when(ready: Callable[[], bool]) -> Callable[[str, int, int], None]:
    def progress(label: str, done: int, total: int) -> None:
        if label == "pruning" and ready():
            raise _Killed

    return progress


@pytest.mark.parametrize("order", ["dense", "corrected"])
def test_a_killed_run_goes_on_with_the_same_channels(
    sequences: Tensor, tmp_path: Path, order: str
) -> None:
    recipe = Recipe(metric="wanda", pattern="2:4", update="refit", shots=3, permute="metric")
    unbroken, resumed, kept = shaken("llama", 2), shaken("llama", 2), tmp_path / "kept"
    wanted = prune_model(unbroken, recipe, sequences, order=order)
    kill = killed_when((kept / "shot-1.safetensors").exists)
    with pytest.raises(_Killed):
        prune_model(shaken("llama", 2), recipe, sequences, order=order, keep=kept, progress=kill)
    # what is kept says the orders, not what they were found by
    record = json.loads((kept / "shots.json").read_text())
    assert record["permutation"]["axes"]
    found = prune_model(resumed, recipe, sequences, order=order, keep=kept)
    assert found.permutation == wanted.permutation
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize("damage", ["order", "name", "axes"])
def test_damaged_orders_are_refused(sequences: Tensor, tmp_path: Path, damage: str) -> None:
    recipe = Recipe(metric="wanda", pattern="2:4", shots=2, permute="metric")
    prune_model(shaken("llama", 2), recipe, sequences, keep=tmp_path)
    record = json.loads((tmp_path / "shots.json").read_text())
    axis = record["permutation"]["axes"][0]
    if damage == "order":
        axis["order"][0] = axis["order"][1]
    elif damage == "name":
        axis["name"] = "elsewhere"
    else:
        del record["permutation"]["axes"]
    (tmp_path / "shots.json").write_text(json.dumps(record))
    model = shaken("llama", 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GppruneError, match=r"are damaged|are not found now"):
        prune_model(model, recipe, sequences, keep=tmp_path)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("pattern", ["row", "N:8", "layer", "model"])
def test_permuting_is_for_groups_of_inputs(pattern: str) -> None:
    with pytest.raises(UsageError, match=f"for a pattern such as 2:4, and this is '{pattern}'"):
        Recipe(metric="wanda", sparsity=0.5, pattern=pattern, permute="metric")


def test_a_recipe_that_permutes_nothing_is_refused(sequences: Tensor) -> None:
    with pytest.raises(UsageError, match="permutes nothing"):
        permute_channels(shaken("llama"), Recipe(metric="wanda", pattern="2:4"), sequences)


def test_a_metric_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match="wandaa"):
        Recipe(metric="wanda", pattern="2:4", permute="wandaa")


def test_scores_without_a_finite_sum_are_refused(sequences: Tensor) -> None:
    large = "sqr(sqr(sqr(mul(1000000, W))))"
    recipe = Recipe(metric="magnitude", pattern="2:4", permute=large)
    model = shaken("llama", 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(GppruneError, match="scores whose sum is not finite"):
        prune_model(model, recipe, sequences)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_checkpoint_is_a_plain_one(sequences: Tensor, tmp_path: Path) -> None:
    """Its file holds 2:4 in its own layout, and plain transformers computes the same."""
    model: Any = shaken("opt")
    prune_model(model, Recipe(metric="ria", pattern="2:4", permute="metric"), sequences)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = [f"{name}.weight" for name in linear_layers(model)]
    for name in names:
        groups = weights[name].reshape(-1, 4)
        assert int((groups != 0).sum(1).max()) == 2, name
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(model))


def test_experts_are_permuted_with_those_that_read_the_stream(sequences: Tensor) -> None:
    """Of a layer that no token came to nothing is proven, and it is named."""
    model = tiny("qwen2moe")
    before = logits(model)
    found = permute_channels(
        model, Recipe(metric="magnitude", pattern="2:4", permute="metric"), sequences
    )
    assert float((logits(model) - before).norm() / before.norm()) < 1e-5
    assert "residual" in {axis.kind for axis in found.axes}
