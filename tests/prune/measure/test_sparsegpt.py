"""SparseGPT's saliency against its published algorithm in NumPy, float64, on captured inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gpprune.compile import kernel
from gpprune.errors import GppruneError, UsageError
from gpprune.primitives import published
from gpprune.prune import Recipe, calibrate, layer_scores, linear_layers, load_model, prune_model

Array = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(params=["tiny_model_dir", "tiny_gpt2_dir"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(str(folder)).model


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 5 * 40].view(5, 40)


def captured(model: nn.Module, sequences: Tensor) -> dict[str, list[Array]]:
    """What every linear layer reads, one float64 ``[tokens, in]`` a sequence."""
    seen: dict[str, list[Array]] = {name: [] for name in linear_layers(model)}
    handles = [
        layer.module.register_forward_hook(
            lambda module, args, output, name=name: seen[name].append(
                args[0].double().flatten(0, -2).numpy().copy()
            )
        )
        for name, layer in linear_layers(model).items()
    ]
    with torch.no_grad():
        for sequence in sequences:
            model(sequence[None])
    for handle in handles:
        handle.remove()
    return seen


def diagonal(inputs: list[Array]) -> Array:
    """As SparseGPT's code goes about it: running mean, dead inputs, damping, inverse, factor."""
    hessian = np.zeros((inputs[0].shape[1],) * 2)
    for count, x in enumerate(inputs, start=1):
        hessian *= (count - 1) / count
        scaled = np.sqrt(2 / count) * x.T
        hessian += scaled @ scaled.T
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    hessian += 0.01 * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    upper: Array = np.linalg.cholesky(np.linalg.inv(hessian)).T
    return np.diag(upper)


def found(model: nn.Module, sequences: Tensor, *also: str) -> dict[str, Tensor]:
    measured = calibrate(model, sequences, ["D", *also])
    return {name: statistics["D"] for name, statistics in measured.items()}


def agree(ours: dict[str, Tensor], inputs: dict[str, list[Array]]) -> None:
    assert list(ours) == list(inputs)
    for name, value in ours.items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value, diagonal(inputs[name]), rtol=1e-4, err_msg=name)


def test_the_diagonal_is_that_of_the_published_algorithm(
    model: nn.Module, sequences: Tensor
) -> None:
    agree(found(model, sequences), captured(model, sequences))
    agree(found(model, sequences, "G"), captured(model, sequences))
    agree(found(model, sequences[:1]), captured(model, sequences[:1]))


def test_it_is_measured_only_when_asked_and_leaves_the_rest(
    model: nn.Module, sequences: Tensor
) -> None:
    without = calibrate(model, sequences, ["X", "Y"])
    for name, statistics in calibrate(model, sequences, ["X", "Y", "D"]).items():
        assert without[name].keys() == {"X", "Y"}
        assert torch.equal(statistics["X"], without[name]["X"])
        assert torch.equal(statistics["Y"], without[name]["Y"])
    assert not any(module._forward_hooks for module in model.modules())


def changed(model: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Let one layer read a changed copy of its input."""
    module = model.get_submodule(name)
    module.register_forward_pre_hook(lambda module, args: (change(args[0].clone()), *args[1:]))


def test_dead_inputs_are_given_one(model: nn.Module, sequences: Tensor) -> None:
    names = list(linear_layers(model))
    dead = names[0]

    def some(x: Tensor) -> Tensor:
        x[..., [0, 5, -1]] = 0
        return x

    changed(model, dead, some)
    inputs = captured(model, sequences)
    ours = found(model, sequences)
    agree(ours, inputs)
    mean = np.mean(np.where((h := (2 / 5) * sum((x**2).sum(0) for x in inputs[dead])) == 0, 1, h))
    np.testing.assert_allclose(ours[dead][[0, 5, -1]], (1 + 0.01 * mean) ** -0.5, rtol=1e-5)


def test_layers_that_read_one_tensor_share_one_diagonal(
    tiny_model_dir: Path, sequences: Tensor
) -> None:
    model = load_model(str(tiny_model_dir)).model
    measured = found(model, sequences)
    assert len(measured) == 14
    assert len({value.data_ptr() for value in measured.values()}) == 8
    for block in ("model.layers.0", "model.layers.1"):
        query, key, value = (measured[f"{block}.self_attn.{n}_proj"] for n in "qkv")
        assert query is key is value
        assert measured[f"{block}.mlp.gate_proj"] is measured[f"{block}.mlp.up_proj"]


def test_layers_that_read_one_tensor_only_at_times_are_told_apart(
    tiny_model_dir: Path, sequences: Tensor
) -> None:
    model = load_model(str(tiny_model_dir)).model
    calls = iter(range(1000))
    changed(model, "model.layers.1.self_attn.k_proj", lambda x: x * (1 + next(calls) % 2))
    inputs = captured(model, sequences)
    calls = iter(range(1000))
    agree(found(model, sequences), inputs)


def test_a_layer_that_is_called_twice_is_counted_twice(
    tiny_model_dir: Path, sequences: Tensor
) -> None:
    model = load_model(str(tiny_model_dir)).model
    query = model.get_submodule("model.layers.0.self_attn.q_proj")
    inside = False

    def again(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal inside
        if not inside:
            inside = True
            module(*args)
            inside = False

    query.register_forward_pre_hook(again)
    inputs = captured(model, sequences)
    name = "model.layers.0.self_attn.q_proj"
    pairs = inputs[name]
    inputs[name] = [np.concatenate(pairs[i : i + 2]) for i in range(0, len(pairs), 2)]
    agree(found(model, sequences), inputs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_inputs_that_are_no_numbers_are_an_error_with_the_layer(
    model: nn.Module, sequences: Tensor, value: float
) -> None:
    name = list(linear_layers(model))[-1]
    changed(model, name, lambda x: torch.full_like(x, value))
    with pytest.raises(GppruneError, match=f"'{name}' cannot be inverted"):
        calibrate(model, sequences, ["D"])


def test_inputs_that_are_all_alike_can_be_inverted(model: nn.Module, sequences: Tensor) -> None:
    name = list(linear_layers(model))[-1]
    changed(model, name, lambda x: torch.full_like(x, 300.0))
    agree(found(model, sequences), captured(model, sequences))


@pytest.mark.parametrize("pattern", ["layer", "row"])
def test_the_published_mask_is_the_direct_computation(
    model: nn.Module, sequences: Tensor, pattern: str
) -> None:
    scores = {
        name: np.square(linear_layers(model)[name].weight.double().numpy() / diagonal(inputs))
        for name, inputs in captured(model, sequences).items()
    }
    recipe = Recipe(metric="sparsegpt", sparsity=0.5, pattern=pattern)
    prune_model(model, recipe, sequences, order="dense")
    for name, layer in linear_layers(model).items():
        wanted = scores[name].reshape(1, -1) if pattern == "layer" else scores[name]
        count = wanted.shape[1] // 2
        pruned = np.zeros(wanted.shape, dtype=bool)
        np.put_along_axis(pruned, np.argsort(wanted, axis=1)[:, :count], True, axis=1)
        zeros = (layer.weight == 0).numpy()
        assert zeros.sum() == pruned.sum()
        differing = (zeros != pruned.reshape(zeros.shape)).sum()
        assert differing <= zeros.size / 1000  # rounding may exchange near-equal scores


def test_scores_without_the_diagonal_say_what_to_do(model: nn.Module, sequences: Tensor) -> None:
    statistics = calibrate(model, sequences, ["X"])
    name, layer = next(iter(linear_layers(model).items()))
    with pytest.raises(UsageError, match=r"reads D, which was not measured.*naming D"):
        layer_scores(kernel(published["sparsegpt"]), layer.weight, statistics[name])
