from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gpprune.errors import UsageError
from gpprune.prune import calibrate, linear_layers, load_model

DIRECTORIES = ["tiny_model_dir", "tiny_gpt2_dir"]


@pytest.fixture(params=DIRECTORIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    folder: Path = request.getfixturevalue(request.param)
    return load_model(str(folder)).model


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 3 * 40].view(3, 40)


def test_norms_are_those_of_all_tokens_at_once(model: nn.Module, sequences: Tensor) -> None:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = linear_layers(model)
    handles = [
        layer.module.register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: (args[0], output)})
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model(sequences)
    for handle in handles:
        handle.remove()
    statistics = calibrate(model, sequences, ["X", "Y"])
    assert list(statistics) == list(layers)
    for name, (x, y) in seen.items():
        expected_x = (x.double().square().sum((0, 1)) / 3).sqrt()
        expected_y = (y.double().square().sum((0, 1)) / 3).sqrt()
        assert torch.allclose(statistics[name]["X"].double(), expected_x, rtol=1e-4, atol=1e-6)
        assert torch.allclose(statistics[name]["Y"].double(), expected_y, rtol=1e-4, atol=1e-6)
        assert statistics[name].keys() == {"X", "Y"}
        assert {value.dtype for value in statistics[name].values()} == {torch.float32}


def test_gradients_are_those_of_each_sequences_loss(model: nn.Module, sequences: Tensor) -> None:
    layers = linear_layers(model)
    expected = {name: torch.zeros(layer.weight.shape) for name, layer in layers.items()}
    for sequence in sequences:
        logits = model(sequence[None]).logits[0, :-1]
        loss = nn.functional.cross_entropy(logits, sequence[1:])
        parameters = [layer.parameter for layer in layers.values()]
        gradients = torch.autograd.grad(loss, parameters)
        for layer, gradient in zip(layers.values(), gradients, strict=True):
            expected[layer.name] += layer.oriented(gradient).square()
    statistics = calibrate(model, sequences, ["G"])
    for name, layer in layers.items():
        gradient = statistics[name]["G"]
        assert gradient.shape == layer.weight.shape and gradient.is_contiguous()
        assert torch.allclose(gradient, expected[name].sqrt(), rtol=1e-3, atol=1e-9)


def test_gradients_leave_the_norms_as_they_are(model: nn.Module, sequences: Tensor) -> None:
    without = calibrate(model, sequences, ["X", "Y"])
    with_gradients = calibrate(model, sequences, ["G", "Y", "X"])
    for name, statistics in without.items():
        for letter in ("X", "Y"):
            assert torch.allclose(statistics[letter], with_gradients[name][letter], rtol=1e-5)


class _Interrupted(Exception):
    pass


def _interrupt(label: str, done: int, total: int) -> None:
    raise _Interrupted(label)


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_model_is_left_as_it_was(
    model: nn.Module, sequences: Tensor, interrupted: bool
) -> None:
    model.train()
    model.config.use_cache = True
    parameters = dict(model.named_parameters())
    frozen = next(iter(parameters.values())).requires_grad_(False)
    kept = next(reversed(parameters.values()))
    kept.grad = torch.ones_like(kept)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if interrupted:
        with pytest.raises(_Interrupted):
            calibrate(model, sequences, ["X", "G"], progress=_interrupt)
    else:
        calibrate(model, sequences, ["X", "G"])
    assert model.config.use_cache is True
    assert all(module.training for module in model.modules())
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in parameters.values() if p is not frozen)
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert all(p.grad is None for p in parameters.values() if p is not kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p._post_accumulate_grad_hooks for p in parameters.values())


def test_a_bfloat16_model_has_float32_statistics_close_by(
    tiny_model_dir: Path, sequences: Tensor
) -> None:
    wide = calibrate(load_model(str(tiny_model_dir)).model, sequences, ["X", "G"])
    narrow_model = load_model(str(tiny_model_dir), dtype=torch.bfloat16).model
    for name, statistics in calibrate(narrow_model, sequences, ["X", "G"]).items():
        assert statistics["G"].dtype == torch.float32
        assert torch.allclose(statistics["X"], wide[name]["X"], rtol=0.1, atol=0.05)


def test_progress_counts_the_sequences(model: nn.Module, sequences: Tensor) -> None:
    calls: list[tuple[str, int, int]] = []
    calibrate(model, sequences, ["X"], progress=lambda *call: calls.append(call))
    assert calls == [("calibrating", done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize(
    "tokens",
    [
        torch.empty(0, 8, dtype=torch.int64),
        torch.empty(4, 0, dtype=torch.int64),
        torch.ones(4, 1, dtype=torch.int64),
        torch.ones(8, dtype=torch.int64),
        torch.ones(2, 8),
    ],
)
def test_tokens_to_calibrate_on_are_needed(model: nn.Module, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match="calibrat"):
        calibrate(model, tokens, ["X"])
