"""Curvature statistics against autograd in float64, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from curvature_reference import TOKENS, captured, reference
from tiny_families import tiny
from torch import Tensor, nn

from gpprune.errors import DampingWarning, GppruneError, UsageError
from gpprune.primitives import STATISTICS, Elements
from gpprune.prune import LinearLayer, Recipe, calibrate, linear_layers, prune_model
from gpprune.prune.measure import sweep
from gpprune.prune.measure.hessians import damped_cholesky
from gpprune.prune.model.experts import traffic
from gpprune.prune.model.run import image_token

NAMES = ["A", "Ai", "Am", "Ay", "Gk", "Gi", "Gm", "Gx", "F", "aaT", "ggT"]
# OPT has biases, GPT-2 biases and Conv1D, the experts of Mixtral lie in one parameter.
FAMILIES = ["llama", "gpt2", "opt", "mixtral"]


@pytest.fixture(autouse=True)
def _every_expert_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few tokens reach it: the reference knows of no others."""
    monkeypatch.setattr(traffic, "FEW", 1)


def agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], rtol: float = 1e-3) -> None:
    for name, value in found.items():
        size = float(wanted[name].abs().max())
        near = torch.allclose(value.double(), wanted[name], rtol=rtol, atol=rtol * size / 10)
        assert near, (name, value, wanted[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_autograd_token_by_token(family: str) -> None:
    model = tiny(family)
    found = calibrate(model, TOKENS, NAMES)
    for name, (a, g) in captured(model, TOKENS).items():
        layer = linear_layers(model)[name]
        assert set(found[name]) == set(NAMES)
        assert all(value.dtype == torch.float32 for value in found[name].values())
        agree(found[name], reference(layer.weight, a, g))


def test_a_bfloat16_model_has_them_close_by() -> None:
    narrow = tiny("llama").bfloat16()
    found = calibrate(narrow, TOKENS, NAMES)
    wide = captured(narrow.float(), TOKENS)
    for name, (a, g) in wide.items():
        wanted = reference(linear_layers(narrow)[name].weight, a, g)
        for statistic in ("A", "Gk", "F", "Ay", "Gx"):
            near = found[name][statistic].double() / wanted[statistic]
            assert 0.8 < float(near.median()) < 1.25, (name, statistic)


@pytest.mark.parametrize("family", FAMILIES)
def test_block_by_block_is_as_the_whole_model_at_once(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(family)
    names = ["X", "Y", "G", *NAMES]
    by_block = calibrate(model, TOKENS, names)

    def broken(*_: Any) -> None:
        raise sweep.NotAChain("not one")

    monkeypatch.setattr(sweep, "BlockRunner", broken)
    whole = calibrate(model, TOKENS, names)
    for name, wanted in whole.items():
        for statistic in names:
            assert torch.equal(by_block[name][statistic], wanted[statistic]), (name, statistic)


@pytest.mark.parametrize("family", ["gemma3", "granitemoe", "qwen2moe", "git", "hrm"])
def test_other_families_have_them_too(family: str) -> None:
    model = tiny(family)
    tokens = TOKENS.masked_fill(image_token(model) == TOKENS, 1)  # which no loss is of
    wanted = captured(model, tokens)
    found = calibrate(model, tokens, ["Gk", "F"])
    for name, (a, g) in wanted.items():
        agree(found[name], reference(linear_layers(model)[name].weight, a, g))


def test_no_weight_gradient_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    asked: list[bool] = []
    for layer in linear_layers(model).values():
        layer.module.register_forward_hook(
            lambda module, args, output: asked.append(module.weight.requires_grad)
        )
    calibrate(model, TOKENS, [name for name in NAMES if STATISTICS[name].type])
    assert not any(asked) and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_they_change_no_other_statistic() -> None:
    model = tiny("llama")
    before = calibrate(model, TOKENS, ["X", "Y", "D"]), calibrate(model, TOKENS, ["G"])
    after = calibrate(model, TOKENS, ["X", "Y", "D", "G", *NAMES])
    for found in before:
        for name, statistics in found.items():
            for statistic, value in statistics.items():
                assert torch.equal(value, after[name][statistic]), (name, statistic)


def test_gradients_that_are_no_numbers_are_refused() -> None:
    model = tiny("llama")
    layer = model.get_submodule("model.layers.1.mlp.down_proj")
    layer.register_forward_hook(lambda module, args, output: output * float("nan"))
    for name in ("Gk", "F", "ggT"):
        with pytest.raises(GppruneError, match=f"statistic {name} of 'model.*NaN or infinity"):
            calibrate(model, TOKENS, [name])
    for name in ("Gi", "Gx"):
        with pytest.raises(GppruneError, match="NaN or infinity"):
            calibrate(model, TOKENS, [name])


def test_a_formula_reads_them_in_either_order() -> None:
    text = "mul(mul(sqr(W), F), div(mul(Gk, A), mul(Gi, mul(Ai, add(Gx, Ay)))))"
    for order in ("sequential", "dense"):
        recipe = Recipe(metric=text, sparsity=0.5)
        assert recipe.reads == {"F", "Gk", "A", "Gi", "Ai", "Gx", "Ay"}
        assert prune_model(tiny("llama"), recipe, TOKENS, order=order).sparsity == 0.5


# Damping


def test_a_damped_factor_is_that_of_numpy() -> None:
    x = torch.randn(30, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = x.t() @ x
    matrix[3], matrix[:, 3] = 0, 0
    kept = matrix.clone()
    others = [0, 1, 2, 4, 5, 6, 7]
    mean = float(matrix.diagonal()[others].mean())
    filled = matrix.numpy().copy()
    filled[3, 3] = mean
    wanted = np.linalg.cholesky(filled + 0.1 * mean * np.eye(8))
    np.testing.assert_allclose(damped_cholesky(matrix, 0.1).numpy(), wanted, rtol=1e-10, atol=1e-12)
    assert torch.equal(matrix, kept)
    assert torch.equal(damped_cholesky(torch.zeros(2, 2), 0.0), torch.eye(2, dtype=torch.float64))


def test_damping_is_raised_with_one_warning_where_it_does_not_suffice() -> None:
    matrix = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    with pytest.warns(DampingWarning, match=r"of 'q' is not .* damping of 0\.01.*by 1:") as seen:
        factor = damped_cholesky(matrix, 0.01, "q")
    assert len(seen) == 1
    torch.testing.assert_close(factor @ factor.t(), matrix.double() + torch.eye(2))


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (torch.tensor([[1.0, 20.0], [20.0, 1.0]]), "not positive definite"),
        (torch.tensor([[1.0, float("nan")], [float("nan"), 1.0]]), "NaN"),
        (torch.tensor([[float("inf"), 0.0], [0.0, 1.0]]), "infinity"),
    ],
)
def test_what_has_no_factor_is_an_error_with_the_layer(matrix: Tensor, says: str) -> None:
    with pytest.raises(GppruneError, match=f"of 'q' cannot be inverted.*{says}"):
        damped_cholesky(matrix, 0.01, "q")


# Labels


def exact_and_empirical(model: nn.Module, tokens: Tensor, layer: LinearLayer) -> tuple[Any, Any]:
    """The diagonal of a layer's Fisher at its outputs, and the one of the text's own tokens."""
    seen: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda m, args, output: seen.append(output))
    logs = model(tokens).logits[0, :-1].double().log_softmax(1)
    handle.remove()
    shares = logs.detach().exp()
    exact = torch.zeros(layer.out_features, dtype=torch.float64)
    # The sum over positions of the expected square: labels of different positions are independent,
    # and the mean gradient of each is 0.
    for place, share in enumerate(shares):
        for label, probability in enumerate(share):
            (g,) = torch.autograd.grad(-logs[place, label], seen[0], retain_graph=True)
            exact += probability * g[0].double().square().sum(0)
    (g,) = torch.autograd.grad(-logs.gather(1, tokens[0, 1:, None]).sum(), seen[0])
    return exact / tokens.numel(), g[0].double().square().sum(0) / tokens.numel()


def test_sampled_labels_estimate_the_exact_fisher() -> None:
    model, tokens = tiny("llama"), TOKENS[:1, :10]
    model.lm_head.weight.data.mul_(20)  # so that predictions are not all alike
    name = "model.layers.0.mlp.down_proj"
    exact, empirical = exact_and_empirical(model, tokens, linear_layers(model)[name])
    drawn = [
        calibrate(model, tokens, ["Gk"], labels="sampled", seed=seed)[name]["Gk"].double()
        for seed in range(150)
    ]
    mean = torch.stack(drawn).mean(0)
    assert (mean - exact).norm() < 0.25 * exact.norm()
    assert (mean - exact).norm() < 0.5 * (empirical - exact).norm()


def test_draws_follow_the_seed_alone() -> None:
    model, name = tiny("llama"), "model.layers.0.mlp.down_proj"
    state = torch.get_rng_state()
    one, again, other = (
        calibrate(model, TOKENS, ["Gk", "G"], labels="sampled", seed=seed)[name]
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    true = calibrate(model, TOKENS, ["Gk", "G"])[name]
    for statistic in ("Gk", "G"):
        assert torch.equal(one[statistic], again[statistic])
        assert not torch.equal(one[statistic], other[statistic])
        assert not torch.equal(one[statistic], true[statistic])


def test_unknown_labels_are_named() -> None:
    with pytest.raises(UsageError, match="no labels 'false': choose from true, sampled"):
        calibrate(tiny("llama"), TOKENS, ["Gk"], labels="false")


def test_a_search_draws_what_is_not_the_root_of_another() -> None:
    searched = {name for name, entry in STATISTICS.items() if entry.searched and entry.type}
    assert searched == {"X", "Y", "G", "Ai", "Gk", "Gi", "Gx", "F"}
    assert STATISTICS["F"].type is Elements
