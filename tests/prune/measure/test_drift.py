"""The drift of a pruned model from the dense one, and weights that make up for a share of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.prune import linear_layers
from gpprune.prune.measure.drift import Drift
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
    "qwen2moe": {"self_attn.o_proj"},
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
        found.update(reads=inputs[0], writes=output)

    hook = layer.module.register_forward_hook(own)
    with quiet_model(model), torch.no_grad():
        found["states"] = torch.stack(
            model(sequence[None], output_hidden_states=True).hidden_states[:2]
        )[1]
    hook.remove()
    return {key: value[0].double() for key, value in found.items()}


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"])
def test_the_drift_is_that_of_the_whole_models(sequences: Tensor, name: str) -> None:
    dense, pruned = tiny("llama"), changed(tiny("llama"))
    whole = f"model.layers.1.{name}"
    wanted: Tensor | float = 0.0
    for sequence in sequences:
        before, now = (signals(model, whole, sequence) for model in (dense, pruned))
        moved = before["writes"] - now["writes"]
        if name == "self_attn.o_proj":  # it is added to the states that the block is given
            moved = moved + before["states"] - now["states"]
        wanted = wanted + moved.t() @ now["reads"] / sequences.numel()
    found = drift_of(tiny("llama"), sequences)[whole]
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))


def drift_of(model: nn.Module, sequences: Tensor) -> dict[str, Tensor]:
    """The drift of the second block's layers when the first has lost half of its weights."""
    layers = linear_layers(model)
    first, second = ({n: v for n, v in layers.items() if v.block == at} for at in (0, 1))
    found: dict[str, Tensor] = {}
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        with Drift(runner) as drift:
            drift.enter(0, list(input_groups(runner, 0, first)))
            for name, layer in linear_layers(changed(model)).items():
                layers[name].write(layer.weight)
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
        with Drift(runner) as drift:
            drift.enter(1, list(input_groups(runner, 1, layers)))
    assert {layers[name].role for name in drift.adding} == ADDING[family]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2moe"])
def test_nothing_drifts_in_a_model_that_stays_dense(family: str, sequences: Tensor) -> None:
    model = tiny(family)
    layers = {n: layer for n, layer in linear_layers(model).items() if layer.block == 0}
    with quiet_model(model), torch.no_grad():
        runner = BlockRunner(model, sequences)
        groups = list(input_groups(runner, 0, layers))
        with Drift(runner) as drift:
            drift.enter(0, groups)
            found = [moved for group in groups for moved in drift.measure(group).values()]
    assert found
    assert all(float(moved.abs().max()) == 0 for moved in found)


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
