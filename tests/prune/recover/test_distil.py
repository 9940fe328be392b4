"""Training under the mask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import tiny
from torch import Tensor, nn
from transformers import ModernBertDecoderConfig, ModernBertDecoderForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from gpprune import errors
from gpprune.prune import (
    Predictions,
    Recipe,
    distil,
    linear_layers,
    prune_model,
    synthetic_samples,
)
from gpprune.prune.shots import mean_loss

FAMILIES = ["llama", "gpt2", "opt", "gemma3", "mamba", "mixtral", "qwen3moe", "rwkv"]


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (5, 24), generator=torch.Generator().manual_seed(0))


def sharp(family: str) -> nn.Module:
    """A model that is surer of what comes next than a new one."""
    model = tiny(family).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def pruned_copy(model: nn.Module, sparsity: float = 0.5) -> nn.Module:
    copied = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in linear_layers(copied).values():
            gone = torch.rand(layer.parameter.shape, generator=draw) < sparsity
            layer.parameter.masked_fill_(gone, 0.0)
    return copied


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def divergence(dense: nn.Module, pruned: nn.Module, tokens: Tensor) -> float:
    """KL(dense || pruned), the mean over tokens, in float64 from its definition."""
    total = 0.0
    for one in tokens:
        p = dense(one[None], use_cache=False).logits[0].double().softmax(-1)
        q = pruned(one[None], use_cache=False).logits[0].double().softmax(-1)
        total += float((p * (p / q).log()).sum(-1).mean())
    return total / len(tokens)


def kept_of(dense: Predictions) -> list[Tensor]:
    """The tensors that predictions hold, but for the text."""
    referred = [dense.__dict__]
    found: list[Tensor] = []
    while referred:
        one = referred.pop()
        if isinstance(one, Tensor):
            found += [one] if one.is_floating_point() else []
        elif isinstance(one, dict):
            referred += one.values()
        elif isinstance(one, list):
            referred += one
        elif not isinstance(one, nn.Module) and hasattr(one, "__dict__"):
            referred.append(vars(one))
    return found


def swapped(model: nn.Module, dense: nn.Module) -> None:
    """Give a model the weights of another."""
    model.load_state_dict(dense.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_are_those_before_pruning(family: str, sequences: Tensor):
    model = sharp(family)
    with torch.no_grad():
        wanted = [model(one[None], use_cache=False).logits[0] for one in sequences]
    dense = Predictions(model, sequences)
    assert {part.shape[-1] for part in kept_of(dense)} == {8 if family == "opt" else 16}
    swapped(model, pruned_copy(model))
    rows = [4, 0, 2]
    found = list(dense.of(rows))
    for row, (tokens, logits) in zip(rows, found, strict=True):
        assert torch.equal(tokens[0], sequences[row])
        torch.testing.assert_close(logits, wanted[row])
        assert not logits.requires_grad
    with torch.no_grad():  # and the model does its own again
        now = model(sequences[:1], use_cache=False).logits[0]
    assert not torch.allclose(now, wanted[0], atol=1e-3)


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


def test_a_head_that_is_called_a_decoder_is_none(sequences: Tensor):
    config = ModernBertDecoderConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        cls_token_id=0,
        sep_token_id=0,
    )
    model = ModernBertDecoderForCausalLM(config).eval()
    dense = Predictions(model, sequences)
    assert {part.shape[-1] for part in kept_of(dense)} == {16}
    with torch.no_grad():
        wanted = model(sequences[1:2]).logits[0]
    ((_, found),) = dense.of([1])
    torch.testing.assert_close(found, wanted)


def test_a_model_without_a_body_keeps_what_it_writes(sequences: Tensor):
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = sharp("llama")

        def forward(self, tokens: Tensor) -> CausalLMOutput:
            return CausalLMOutput(logits=self.inner(tokens).logits * 2)

    model = Whole()
    dense = Predictions(model, sequences)
    with torch.no_grad():
        wanted = model(sequences[3:4]).logits[0]
        for parameter in model.parameters():
            parameter.zero_()
    ((_, found),) = dense.of([3])
    assert torch.equal(found, wanted)


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


def writing_over(model: nn.Module) -> nn.Module:
    """A model that writes into what a layer has read."""

    def over(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[0].mul_(1.0)

    model.model.layers[0].mlp.down_proj.register_forward_hook(over)
    return model


def test_a_model_that_cannot_be_trained_is_refused_before_it_is_pruned(sequences: Tensor):
    model = writing_over(sharp("llama"))
    before = weights(model)
    with pytest.raises(errors.GppruneError, match="writes over what its gradients need"):
        prune_model(model, Recipe(metric="magnitude", sparsity=0.5, recover=1), sequences)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())
    prune_model(model, Recipe(metric="magnitude", sparsity=0.5), sequences)


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


@pytest.mark.parametrize("order", ["dense", "sequential", "corrected"])
@pytest.mark.parametrize("count", [0, 4])
def test_a_recipe_recovers_on_its_text(order: str, count: int, sequences: Tensor):
    how = {"metric": "kron-obd", "pattern": "model", "sparsity": 0.5, "update": "refit(3)"}
    plain = Recipe(**how, synthetic_samples=count)
    model = sharp("llama")
    by_hand = copy.deepcopy(model)
    report = prune_model(model, plain.model_copy(update={"recover": 2}), sequences, order=order)
    text = sequences
    if count:
        text = torch.cat([sequences, synthetic_samples(by_hand, sequences, count)])
    dense = Predictions(by_hand, text)
    wanted = prune_model(by_hand, plain, sequences, order=order)
    distil(by_hand, dense, range(len(text)), 2)
    assert same(model, by_hand)
    assert report.zeros == wanted.zeros


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("count", [0, 4])
def test_a_report_says_what_training_brought(shots: int, count: int, sequences: Tensor):
    how = {"metric": "kron-obd", "pattern": "model", "sparsity": 0.5, "update": "refit(3)"}
    recipe = Recipe(**how, shots=shots, synthetic_samples=count, recover=20)
    model = sharp("llama")
    whole, plain = copy.deepcopy(model), copy.deepcopy(model)
    written = synthetic_samples(model, sequences, count * shots).split(count) if count else []
    found = prune_model(model, recipe, sequences).shots
    wanted = prune_model(plain, recipe.model_copy(update={"recover": 0}), sequences)
    assert len(found) == shots
    assert found[-1].zeros == wanted.zeros
    assert all(shot.recovered not in (None, shot.after) for shot in found)
    assert divergence(whole, model, sequences) < divergence(whole, plain, sequences)
    texts = [torch.cat([sequences, own]) for own in written] or [sequences] * shots
    assert found[0].before == mean_loss(whole, texts[0])
    assert found[-1].recovered == mean_loss(model, texts[-1])
    for before, shot in pairwise(found):
        assert (shot.before == before.recovered) == (count == 0)
    if wanted.shots:
        assert found[0].after == wanted.shots[0].after
        assert wanted.shots[0].recovered is None


@pytest.mark.parametrize("count", [0, 4])
def test_training_of_shots_that_are_left(count: int, sequences: Tensor, tmp_path: Path):
    recipe = Recipe(metric="magnitude", sparsity=0.6, shots=3, synthetic_samples=count, recover=2)
    model = sharp("llama")
    broken, again, last = (copy.deepcopy(model) for _ in range(3))
    prune_model(model, recipe, sequences)
    steps: list[tuple[str, int]] = []

    def breaking(label: str, done: int, total: int) -> None:
        if (label, done) == ("shots", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(broken, recipe, sequences, keep=tmp_path / "kept", progress=breaking)
    how = {"keep": tmp_path / "kept", "progress": lambda label, *at: steps.append((label, at[1]))}
    prune_model(again, recipe, sequences, **how)
    assert same(model, again)
    assert ("predictions", 5 + 2 * count) in steps  # of the text that is left
    steps.clear()
    finished = prune_model(last, recipe, sequences, **how)
    assert same(model, last)
    assert len(finished.shots) == 3
    assert not any(label == "predictions" for label, _ in steps)


@pytest.mark.parametrize("shots", [1, 2])
def test_a_mask_of_weights_alone_reads_text_to_recover(shots: int, sequences: Tensor):
    how = {"metric": "magnitude", "sparsity": 0.5, "synthetic_samples": 4, "shots": shots}
    with pytest.raises(errors.UsageError, match="4 synthetic samples are of no use"):
        Recipe(**how)
    model = sharp("llama")
    before = weights(model)
    prune_model(model, Recipe(**how, recover=1), sequences)
    for name, layer in linear_layers(model).items():
        kept = layer.parameter != 0
        assert int(kept.sum()) == kept.numel() // 2
        assert not torch.equal(layer.parameter[kept], before[f"{name}.weight"][kept])


def test_a_recipe_holds_it_if_there_is_any(tmp_path: Path):
    assert "recover" not in Recipe(sparsity=0.5).model_dump()
    recipe = Recipe(sparsity=0.5, recover=3)
    recipe.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe
    with pytest.raises(errors.UsageError, match="recover is -1"):
        Recipe(sparsity=0.5, recover=-1)
