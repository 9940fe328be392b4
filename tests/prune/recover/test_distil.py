"""Training under the mask."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recovering import divergence, pruned_copy, same, sharp, swapped, weights
from torch import Tensor, nn

from gpprune import errors
from gpprune.prune import Predictions, distil, linear_layers

FAMILIES = ["llama", "gpt2", "opt", "gemma3", "mamba", "mixtral", "qwen3moe", "rwkv"]


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_comes_nearer_to_the_dense_model(family: str, sequences: Tensor):
    model = sharp(family)
    dense, whole = Predictions(model, sequences), copy.deepcopy(model)
    swapped(model, pruned_copy(model, 0.3))
    before = divergence(whole, model, sequences)
    losses = distil(model, dense, range(len(sequences)), 30, rate=5e-3)
    assert len(losses) == 30
    assert divergence(whole, model, sequences) < 0.5 * before


@settings(max_examples=15, deadline=None)
@given(
    sparsity=st.floats(0.0, 1.0),
    family=st.sampled_from(["llama", "gpt2", "mixtral"]),
    rate=st.sampled_from([1e-4, 1e-2, 1.0]),
)
def test_zeros_stay_and_all_else_but_linear_layers(sparsity: float, family: str, rate: float):
    draw = torch.Generator().manual_seed(0)
    sequences = torch.randint(1, 64, (3, 16), generator=draw)
    model = sharp(family)
    dense = Predictions(model, sequences)
    swapped(model, pruned_copy(model, sparsity))
    before = weights(model)
    distil(model, dense, [0, 1, 2], 2, rate=rate)
    ours = {id(layer.parameter) for layer in linear_layers(model).values()}
    moved = False
    for name, one in model.named_parameters():
        if id(one) not in ours:
            assert torch.equal(one, before[name])
            continue
        zero = before[name] == 0
        assert not one[zero].any()
        assert not one[zero].signbit().any()
        moved |= not torch.equal(one, before[name])
    assert moved or sparsity > 0.9


@pytest.mark.parametrize("epochs", [1, 2])
def test_losses_are_the_divergence(epochs: int, sequences: Tensor):
    model = sharp("llama")
    dense, whole = Predictions(model, sequences), copy.deepcopy(model)
    swapped(model, pruned_copy(model))
    before = copy.deepcopy(model)
    rows = [0, 2, 3]
    losses = distil(model, dense, rows, epochs, rate=0.0)
    wanted = divergence(whole, before, sequences[rows])
    assert losses == pytest.approx([wanted] * epochs, rel=1e-5)
    assert same(model, before)


def test_a_step_is_adams(sequences: Tensor):
    model = sharp("llama").double()
    dense, whole = Predictions(model, sequences), copy.deepcopy(model)
    swapped(model, pruned_copy(model))
    by_hand = copy.deepcopy(model)
    distil(model, dense, [1, 3], 1, rate=1e-3)  # one step, of both
    logits = [(whole(one[None]).logits[0], by_hand(one[None]).logits[0]) for one in sequences]
    loss = torch.stack(
        [
            (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
            for p, q in logits
        ]
    )
    loss[[1, 3]].mean().backward()
    for name, layer in linear_layers(by_hand).items():
        gradient = layer.parameter.grad
        first = torch.where(layer.parameter == 0, 0, 1e-3 * gradient / (gradient.abs() + 1e-8))
        torch.testing.assert_close(linear_layers(model)[name].parameter, layer.parameter - first)


def test_the_rate_rises_and_falls(sequences: Tensor, monkeypatch: pytest.MonkeyPatch):
    rates: list[float] = []
    plain = torch.optim.Adam.step

    def noting(self: torch.optim.Adam, *how: object) -> None:
        rates.append(self.param_groups[0]["lr"])
        plain(self)

    monkeypatch.setattr(torch.optim.Adam, "step", noting)
    model = sharp("llama")
    distil(model, Predictions(model, sequences), range(5), 10, rate=0.5)
    assert len(rates) == 30
    assert rates[0] < rates[1] < rates[2] <= 0.5
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_it_is_the_same_each_time(sequences: Tensor):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    found = []
    for _ in range(2):
        model = sharp("llama")
        dense = Predictions(model, sequences)
        swapped(model, pruned_copy(model))
        distil(model, dense, range(5), 2)
        found.append(model)
    assert same(*found)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_small_steps_add_up_in_bfloat16(sequences: Tensor):
    model = sharp("llama").bfloat16()
    dense = Predictions(model, sequences)
    swapped(model, pruned_copy(model))
    before = weights(model)
    distil(model, dense, range(5), 40, rate=5e-5)  # a step is below a weight's last bit
    ours = {id(layer.parameter) for layer in linear_layers(model).values()}
    kept = [(one, before[n]) for n, one in model.named_parameters() if id(one) in ours]
    changed = sum(int((one != was).sum()) for one, was in kept)
    assert changed > 0.2 * sum(int((was != 0).sum()) for _, was in kept)
    assert all(one.dtype == torch.bfloat16 and not one[was == 0].any() for one, was in kept)


def stop(label: str, done: int, total: int) -> None:
    if label == "recovering" and done == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("ends", [None, stop])
def test_what_takes_gradients_is_as_before(
    ends: Callable[[str, int, int], None] | None, sequences: Tensor
):
    model = sharp("llama")
    dense = Predictions(model, sequences)
    first, *others = model.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    with torch.no_grad():  # wherever it is called
        if ends is None:
            distil(model, dense, range(5), 1)
        else:
            with pytest.raises(KeyboardInterrupt):
                distil(model, dense, range(5), 1, progress=ends)
    assert not first.requires_grad
    assert all(one.requires_grad for one in others)
    assert others[0].grad is not None
    assert torch.equal(others[0].grad, torch.ones_like(others[0]))
    assert all(one.grad is None for one in others[1:])


def damage(model: nn.Module) -> None:
    with torch.no_grad():
        next(iter(linear_layers(model).values())).parameter[0, 0] = float("nan")


def test_damaged_models_are_said(sequences: Tensor):
    model = sharp("llama")
    dense = Predictions(model, sequences)
    damage(model)
    with pytest.raises(errors.GppruneError, match="the loss is nan as the pruned model recovers"):
        distil(model, dense, range(5), 1)
    with pytest.raises(errors.GppruneError, match="dense model's predictions are not finite"):
        Predictions(model, sequences)


def test_a_gradient_that_is_not_finite_is_said_before_the_step(sequences: Tensor):
    model = sharp("llama")
    dense = Predictions(model, sequences)
    swapped(model, pruned_copy(model))
    before = weights(model)
    layer = next(iter(linear_layers(model).values()))
    layer.parameter.register_hook(
        lambda gradient: gradient.index_fill(0, torch.tensor(0), torch.inf)
    )
    with pytest.raises(errors.GppruneError, match="a gradient is not finite"):
        distil(model, dense, [0, 1], 1)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_no_text_is_said(sequences: Tensor):
    model = sharp("llama")
    with pytest.raises(errors.UsageError, match="at least one sequence"):
        distil(model, Predictions(model, sequences), [], 1)


def test_dropout_is_off(sequences: Tensor):
    model = sharp("gpt2").train()
    same_model = copy.deepcopy(model).eval()
    for one in (model, same_model):
        dense = Predictions(one, sequences)
        swapped(one, pruned_copy(one))
        distil(one, dense, range(5), 1)
    assert model.training
    assert same(model, same_model)


def test_progress_is_in_steps(sequences: Tensor):
    told: list[tuple[str, int, int]] = []
    model = sharp("llama")
    dense = Predictions(model, sequences, lambda *said: told.append(said))
    distil(model, dense, range(5), 2, progress=lambda *said: told.append(said))
    assert told[:5] == [("predictions", done, 5) for done in range(1, 6)]
    assert told[5:] == [("recovering", done, 6) for done in range(1, 7)]
