"""The drift of a pruned model from the dense one, and weights that make up for a share of it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.prune import linear_layers
from gpprune.prune.measure.drift import Drift, originals_of
from gpprune.prune.model.readers import input_groups
from gpprune.prune.model.run import quiet_model
from gpprune.prune.model.sequential import BlockRunner
from gpprune.prune.update.correction import SHARE, corrected

# The layers of a block that add to the hidden states; the others are judged by what they write.
ADDING = {
    "llama": {"self_attn.o_proj", "mlp.down_proj"},
    "gpt2": {"attn.c_proj", "mlp.c_proj"},
    "opt": {"self_attn.out_proj", "fc2"},
    "gemma3": set(),  # each is normalised before it is added
}


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (3, 16), generator=torch.Generator().manual_seed(0))


def changed(model: nn.Module) -> nn.Module:
    """A copy whose first block has lost half of its weights."""
    model = copy.deepcopy(model)
    for layer in linear_layers(model).values():
        if layer.block == 0:
            layer.write(layer.weight * (torch.arange(layer.in_features) % 2))
    return model


def signals(model: nn.Module, name: str, sequence: Tensor) -> dict[str, Tensor]:
    """What a layer of the second block reads and writes, and that block's stream around it."""
    found: dict[str, Tensor] = {}
    layer = linear_layers(model)[name]

    def own(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.update(reads=inputs[0].clone(), writes=output.clone())

    def middle(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found["middle"] = inputs[0]

    norm = model.get_submodule("model.layers.1.post_attention_layernorm")
    hooks = [
        layer.module.register_forward_hook(own),
        norm.register_forward_pre_hook(middle),
    ]
    with quiet_model(model), torch.no_grad():
        found["states"] = torch.stack(
            model(sequence[None], output_hidden_states=True).hidden_states[:2]
        )[1]
    for hook in hooks:
        hook.remove()
    return {key: value[0].double() for key, value in found.items()}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("self_attn.q_proj", lambda: tiny("llama")),
        ("self_attn.q_proj.proj", lambda: clipped()),
        ("self_attn.o_proj", lambda: tiny("llama")),
        ("mlp.gate_proj", lambda: tiny("llama")),
        ("mlp.down_proj", lambda: tiny("llama")),
    ],
)
def test_the_drift_is_that_of_the_whole_models(
    sequences: Tensor, name: str, make: Callable[[], nn.Module]
) -> None:
    dense, pruned = make(), changed(make())
    whole = f"model.layers.1.{name}"
    wanted: Tensor | float = 0.0
    for sequence in sequences:
        before, now = (signals(model, whole, sequence) for model in (dense, pruned))
        moved = before["writes"] - now["writes"]
        if name == "self_attn.o_proj":  # it is added to the states that the block is given
            moved = moved + before["states"] - now["states"]
        if name == "mlp.down_proj":  # and these to what attention has made of them
            moved = moved + before["middle"] - now["middle"]
        wanted = wanted + moved.t() @ now["reads"] / sequences.numel()
    found = drift_of(make(), sequences)[whole]
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))


def drift_of(model: nn.Module, sequences: Tensor) -> dict[str, Tensor]:
    """The drift of the second block's layers when the first has lost half of its weights."""
    layers = linear_layers(model)
    first, second = ({n: v for n, v in layers.items() if v.block == at} for at in (0, 1))
    found: dict[str, Tensor] = {}
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        drift = Drift(runner)
        groups = list(input_groups(runner, 0, first))
        drift.enter(0, groups)
        for name, layer in linear_layers(changed(model)).items():
            layers[name].write(layer.weight)
        for group in groups:
            drift.measure(group)
        runner.forward(0, keep=True)
        groups = list(input_groups(runner, 1, second))
        drift.enter(1, groups)
        for group in groups:
            found |= drift.measure(group)
    return found


@pytest.mark.parametrize("family", list(ADDING))
def test_layers_that_add_to_the_states_are_found(family: str, sequences: Tensor) -> None:
    model = tiny(family)
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 1}
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        runner.forward(0, keep=True)
        drift = Drift(runner)
        drift.enter(1, list(input_groups(runner, 1, layers)))
    assert {layers[name].role for name in drift.adding} == ADDING[family]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2moe"])
def test_nothing_drifts_in_a_model_that_stays_dense(family: str, sequences: Tensor) -> None:
    model = tiny(family)
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 0}
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        groups = list(input_groups(runner, 0, layers))
        drift = Drift(runner)
        drift.enter(0, groups)
        found = [moved for group in groups for moved in drift.measure(group).values()]
    assert found
    assert all(float(moved.abs().max()) == 0 for moved in found)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_was_changed_has_drifted_from_its_originals(
    family: str, sequences: Tensor
) -> None:
    model = tiny(family)
    with originals_of(model) as originals:
        for layer in linear_layers(model).values():
            layer.write(layer.weight * (torch.arange(layer.in_features) % 2))
        layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 0}
        reader, layer = next(iter(layers.items()))  # nothing before it was changed
        dense = linear_layers(tiny(family))[reader].weight
        reads: list[Tensor] = []

        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            reads.append(inputs[0].flatten(0, -2).double())

        with quiet_model(model), torch.no_grad():
            hook = layer.module.register_forward_pre_hook(note)
            model(sequences)
            hook.remove()
            runner = BlockRunner(model, sequences)
            groups = list(input_groups(runner, 0, layers))
            drift = Drift(runner, originals)
            drift.enter(0, groups)
            found = drift.measure(groups[0])[reader]
    gram = reads[0].t() @ reads[0] / len(reads[0])
    wanted = (dense.double() - layer.weight.double()) @ gram
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))


class Router(nn.Linear):
    """A linear layer that says more than a matrix would."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found = super().forward(x)
        return found, found.argmax(-1)


class Routed(nn.Module):
    """An MLP whose reader of a router takes both that it says."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.mlp, self.router = mlp, Router(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found, best = self.router(x)
        return self.mlp(x) * found.softmax(-1).gather(-1, best[..., None])


def test_routers_that_return_more_are_left_out(sequences: Tensor) -> None:
    model = tiny("llama")
    block = model.get_submodule("model.layers.0")
    block.mlp = Routed(block.mlp)
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 0}
    assert [name for name, layer in layers.items() if not layer.plain] == [
        "model.layers.0.mlp.router"
    ]
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        groups = list(input_groups(runner, 0, layers))
        drift = Drift(runner)
        drift.enter(0, groups)
        found = {name for group in groups for name in drift.measure(group)}
    assert found == layers.keys() - {"model.layers.0.mlp.router"}


class Clipped(nn.Module):
    """A projection that is clipped in place, as OLMo's query, key and value."""

    def __init__(self, proj: nn.Module) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).clamp_(-1e-3, 1e-3)


def clipped() -> nn.Module:
    model = tiny("llama")
    attention = model.get_submodule("model.layers.1.self_attn")
    attention.q_proj = Clipped(attention.q_proj)
    return model


def test_a_corrected_weight_is_a_share_of_the_ridge_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator)
    reads, wanted = (torch.randn(40, size, generator=generator).double() for size in (7, 5))
    reads[:, 2] = 0  # a feature that never speaks
    missing = wanted - reads @ weight.double().t()
    A, drift = reads.t() @ reads / 40, missing.t() @ reads / 40
    ridge = A.numpy() + np.diag(0.1 * np.where(np.diag(A) > 0, np.diag(A), 1))
    full = weight.double().numpy() + np.linalg.solve(ridge, drift.numpy().T).T
    found = corrected(weight, drift, A, share=1)
    np.testing.assert_allclose(found.numpy(), full, rtol=1e-5, atol=1e-6)
    part = weight.double().numpy() * (1 - SHARE) + full * SHARE
    np.testing.assert_allclose(corrected(weight, drift, A).numpy(), part, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[:, 2], weight[:, 2])
