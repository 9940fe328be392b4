"""Experts that are stored as one parameter: layers like others, against plain transformers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gpprune.prune import Recipe, calibrate, coverage, linear_layers, prune_model
from gpprune.prune.model.readers import input_groups
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner

FAMILIES = ("mixtral", "granitemoe", "qwen2moe", "qwen3moe", "gptoss", "deepseek")
TOKENS = torch.randint(64, (6, 48), generator=torch.Generator().manual_seed(1))


def _stacks(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of experts by name, which lie ``[experts, out, in]`` or ``[..., in, out]``."""
    return {n: p for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n}


def _matrices(model: nn.Module, family: str) -> Iterator[Tensor]:
    """Each expert's matrix ``[out, in]``."""
    for stack in _stacks(model).values():
        yield from (one.t() if family == "gptoss" else one for one in stack.detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_what_it_did(family: str) -> None:
    model = tiny(family)
    with torch.no_grad():
        before = model(TOKENS).logits
        names, state = [n for n, _ in model.named_parameters()], list(model.state_dict())
        layers = linear_layers(model)
        after = model(TOKENS).logits
    assert any(layer.stacked for layer in layers.values())
    assert [n for n, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == state
    assert float((after - before).norm()) < 1e-6 * float(before.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_the_matrices_of_the_stacks(family: str) -> None:
    model = tiny(family)
    layers = [layer for layer in linear_layers(model).values() if layer.stacked]
    matrices = list(_matrices(model, family))
    assert len(layers) == len(matrices)
    for layer in layers:
        stack = model.get_parameter(layer.parameter_name)
        own = stack[int(layer.name.split(".")[-2])]
        assert torch.equal(layer.weight, own.t() if family == "gptoss" else own)
        assert stack.shape[layer.input_dim] == layer.in_features
        assert ".*." in layer.role


def test_a_copy_is_a_model_of_its_own() -> None:
    model = tiny("mixtral")
    linear_layers(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = model(TOKENS).logits
        for layer in linear_layers(other).values():
            layer.weight.zero_()
        assert torch.equal(model(TOKENS).logits, before)
        assert not torch.equal(other(TOKENS).logits, before)


def _routed(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """What the experts of each block read ``[tokens, hidden]``, and which of them each token's."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.endswith("experts"):

            def note(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                found[name] = (given[0].double(), given[1])

            hooks.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("family", ["mixtral", "granitemoe", "qwen2moe"])
def test_statistics_are_of_the_tokens_that_came_to_an_expert(family: str) -> None:
    routed = _routed(tiny(family))  # which gpprune has not opened
    model = tiny(family)
    found = calibrate(model, TOKENS, ["X"])
    assert routed
    for name, (states, chosen) in routed.items():
        first = model.get_parameter(f"{name}.gate_up_proj")
        for place in range(len(first)):
            own = states[(chosen == place).any(1)]
            gate, up = (own @ first[place].double().t()).chunk(2, dim=-1)
            inner = nn.functional.silu(gate) * up
            for part, read in (("gate_up_proj", own), ("down_proj", inner)):
                wanted = (read.square().sum(0) / len(TOKENS)).sqrt()
                layer = f"{name}.{place}.{part}"
                torch.testing.assert_close(found[layer]["X"].double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["mixtral", "gptoss"])
def test_gradients_are_those_of_the_stack(family: str) -> None:
    plain, model = tiny(family), tiny(family)
    sums = {name: torch.zeros_like(stack) for name, stack in _stacks(plain).items()}
    for sequence in TOKENS:
        plain.zero_grad()
        plain(sequence[None], labels=sequence[None]).loss.backward()
        for name, stack in _stacks(plain).items():
            sums[name] += stack.grad.square()
    found = calibrate(model, TOKENS, ["G"])
    layers = [layer for layer in linear_layers(model).values() if layer.stacked]
    assert layers
    for layer in layers:
        wanted = layer.oriented(layer.part(sums[layer.parameter_name])).sqrt()
        torch.testing.assert_close(found[layer.name]["G"], wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("order", ["sequential", "true-sequential", "dense"])
def test_every_expert_is_pruned_and_saved(family: str, order: str, tmp_path: Path) -> None:
    model = tiny(family)
    report = prune_model(model, Recipe(sparsity=0.5), TOKENS, order=order)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for matrix in _matrices(loaded, family):
        more = (matrix == 0).sum(1) - matrix.shape[1] // 2  # what routers do not give up
        assert set(more.tolist()) <= {0, 1}
    assert report.block_zeros == coverage(model).size // 2
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)


def test_two_of_four_lie_along_the_inputs(tmp_path: Path) -> None:
    for family in ("mixtral", "gptoss"):
        model = tiny(family)
        prune_model(model, Recipe(pattern="2:4"), TOKENS)
        model.save_pretrained(tmp_path / family)  # type: ignore[operator]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / family)
        for matrix in _matrices(loaded, family):
            assert (matrix.reshape(len(matrix), -1, 4) != 0).sum(2).eq(2).all()


@pytest.mark.parametrize("update", ["sparsegpt", "swaps", "surgeon", "least-squares"])
def test_updates_mend_experts(update: str) -> None:
    dense, plain, mended = tiny("mixtral"), tiny("mixtral"), tiny("mixtral")
    prune_model(plain, Recipe(sparsity=0.6), TOKENS)
    report = prune_model(mended, Recipe(sparsity=0.6, update=update), TOKENS)
    assert report.sparsity == pytest.approx(0.6, abs=0.05)
    with torch.no_grad():
        wanted = dense(TOKENS).logits
        errors = [float((one(TOKENS).logits - wanted).norm()) for one in (mended, plain)]
    assert errors[0] < errors[1]


def test_shots_and_training_keep_the_zeros_of_experts(tmp_path: Path) -> None:
    recipe = Recipe(sparsity=0.5, shots=3, recover=1)
    model, again = tiny("qwen3moe"), tiny("qwen3moe")
    report = prune_model(model, recipe, TOKENS, keep=tmp_path / "shots")
    assert report.block_sparsity == 0.5
    prune_model(again, recipe, TOKENS, keep=tmp_path / "shots")  # nothing is left to do
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(sparsity=0.5, allocation="besa"),
        Recipe(sparsity=0.5, allocation="owl"),
        Recipe(metric="mul(F, abs(W))", sparsity=0.5, pattern="model"),
    ],
    ids=lambda recipe: f"{recipe.allocation} {recipe.pattern}",
)
def test_what_shares_the_sparsity_out_knows_experts(recipe: Recipe) -> None:
    model = tiny("gptoss")
    assert prune_model(model, recipe, TOKENS).block_sparsity == pytest.approx(0.5, abs=1e-3)
    shares = {float((matrix == 0).float().mean()) for matrix in _matrices(model, "gptoss")}
    assert len(shares) > 1


def test_permuting_the_residual_stream_moves_what_experts_read() -> None:
    model, plain = tiny("mixtral"), tiny("mixtral")
    recipe = Recipe(pattern="2:4", permute="metric")
    report = prune_model(model, recipe, TOKENS, order="dense")
    prune_model(plain, Recipe(pattern="2:4"), TOKENS, order="dense")
    assert report.permutation is not None
    assert not any(".gate_up_proj" in name for name in report.permutation.in_place)
    assert {axis.kind for axis in report.permutation.axes} >= {"residual"}


def _with_idle_expert() -> nn.Module:
    """A model whose last expert no token is sent to, in its first block."""
    model = tiny("gptoss")
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.router.bias")[3] = -1e4
    return model


IDLE = "model.layers.0.mlp.experts.3"


@pytest.mark.parametrize("order", ["sequential", "true-sequential", "corrected", "dense"])
def test_an_idle_expert_is_pruned_by_what_the_others_read(order: str) -> None:
    model = _with_idle_expert()
    update = "sparsegpt" if order == "corrected" else "none"
    report = prune_model(model, Recipe(sparsity=0.5, update=update), TOKENS, order=order)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert report.experts is not None and report.experts.few == {IDLE: 0}
    (sentence,) = [one for one in report.sentences if "experts got" in one]
    assert "1 of 8 experts got fewer than 32 of 288 calibration tokens" in sentence
    found = {layer.name: layer.sparsity for layer in report.layers}
    assert found[f"{IDLE}.down_proj"] == pytest.approx(0.5, abs=0.05)


def test_statistics_of_an_idle_expert_are_the_mean_of_the_others() -> None:
    found = calibrate(_with_idle_expert(), TOKENS, ["X", "aaT"])
    for part in ("gate_up_proj", "down_proj"):
        for statistic in ("X", "aaT"):
            others = [
                found[f"model.layers.0.mlp.experts.{place}.{part}"][statistic] for place in range(3)
            ]
            own = found[f"{IDLE}.{part}"][statistic]
            torch.testing.assert_close(own, torch.stack(others).mean(0))


def test_an_idle_expert_may_stay_dense() -> None:
    model = _with_idle_expert()
    for recipe in (
        Recipe(sparsity=0.5, idle_experts="dense"),
        Recipe(sparsity=0.5, idle_experts="dense", shots=2),
    ):
        report = prune_model(model, recipe, TOKENS)
        found = {layer.name: layer.zeros for layer in report.layers}
        assert found[f"{IDLE}.gate_up_proj"] == found[f"{IDLE}.down_proj"] == 0
        dense = 3 * 16 * 24
        share = 0.5 * report.coverage.size / report.size
        assert report.zeros == pytest.approx(share * (report.size - dense), abs=8)
        assert any("they are left dense" in sentence for sentence in report.sentences)


def test_a_table_has_one_row_for_all_experts_of_a_list() -> None:
    report = prune_model(tiny("mixtral"), Recipe(sparsity=0.5), TOKENS)
    rows = {row.name: row for row in report.rows}
    assert rows["model.layers.1.mlp.experts.*.down_proj"].size == 4 * 16 * 24
    assert rows["all"].zeros == report.zeros
    assert rows["all matrices of the blocks"].size == report.coverage.size


def test_experts_of_one_list_are_a_group() -> None:
    model = tiny("mixtral")
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 1}
    with quiet_model(model), torch.no_grad():
        groups = list(input_groups(BlockRunner(model, TOKENS), 1, layers))
    assert [len(group) for group in groups] == [3, 1, 4, 4]
    assert all(name.endswith("gate_up_proj") for name in groups[2])


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)


class _Mixture(nn.Module):
    """A mixture in the older form: a list of modules, a router and a gate beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_Expert() for _ in range(3))
        self.choose = nn.Linear(8, 3)
        self.shared = _Expert()
        self.much = nn.Linear(8, 1)


def test_experts_in_a_list_have_one_role_and_their_router_is_left_alone() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(_Mixture() for _ in range(2))
    layers = linear_layers(model)
    assert {layer.role for layer in layers.values()} == {
        "experts.*.up",
        "experts.*.down",
        "shared.up",
        "shared.down",
    }
    left = {role.role: role.reason for role in coverage(model).roles}
    assert left == {"choose": "a gate of experts", "much": "a gate of experts"}


def test_nothing_is_counted_where_nothing_is_read() -> None:
    told: list[str] = []
    recipe = Recipe(metric="magnitude", sparsity=0.5)
    report = prune_model(
        _with_idle_expert(), recipe, TOKENS, progress=lambda label, *_: told.append(label)
    )
    assert report.experts is None and "counting experts' tokens" not in told
    assert report.block_sparsity == 0.5


def test_experts_that_all_got_few_tokens_go_by_their_own() -> None:
    few = TOKENS[:1, :12]
    report = prune_model(tiny("mixtral"), Recipe(sparsity=0.5), few)
    (sentence,) = [one for one in report.sentences if "experts got" in one]
    assert "they are pruned by those" in sentence and "that got more" not in sentence


def test_tokens_are_counted_on_all_that_is_calibrated_on() -> None:
    recipe = Recipe(sparsity=0.5, synthetic_samples=24)
    report = prune_model(tiny("mixtral"), recipe, TOKENS[:1])
    assert report.experts is not None
    assert report.experts.length == 25 * 48


def test_an_opened_model_can_be_pickled() -> None:
    model = tiny("mixtral")
    linear_layers(model)
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
        next(iter(reversed(linear_layers(again).values()))).weight.zero_()
        assert not torch.equal(again(TOKENS).logits, model(TOKENS).logits)
