"""Losses that compare a pruned model with the dense one, against float64 references."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import gpprune
from gpprune.errors import UsageError
from gpprune.evals import LOSSES, evaluate, windows
from gpprune.evals.losses.divergence import Divergence


@pytest.fixture(scope="module")
def dense(tiny_model_dir: Path):
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def pruned(dense):
    """Half of the weights of every matrix of the blocks are zero."""
    other = copy.deepcopy(dense)
    with torch.no_grad():
        for module in other.base_model.modules():
            if isinstance(module, nn.Linear):
                small = module.weight.abs() < module.weight.abs().median()
                module.weight[small] = 0
    return other


def probabilities(model, window: Tensor) -> Tensor:
    with torch.no_grad():
        return model(window[None]).logits[0, :-1].double().softmax(1)


def divergence(dense, pruned, window: Tensor, top: int) -> float:
    """Token by token, the dense model's likeliest kept and all others one outcome."""
    total = 0.0
    for p, q in zip(probabilities(dense, window), probabilities(pruned, window), strict=True):
        kept = p.argsort(descending=True)[:top].tolist()
        outcomes = [(float(p[token]), float(q[token])) for token in kept]
        others = [token for token in range(len(p)) if token not in kept]
        if others:
            outcomes.append((float(p[others].sum()), float(q[others].sum())))
        total += sum(mine * math.log(mine / theirs) for mine, theirs in outcomes)
    return total / (len(window) - 1)


@pytest.mark.parametrize("top", [1, 7, 100_000])
def test_the_divergence_is_that_of_the_likeliest_tokens(dense, pruned, tiny_tokens, top: int):
    found = Divergence(pruned, dense, top)
    for window in windows(tiny_tokens, 2, 40):
        assert found(window) == pytest.approx(
            divergence(dense, pruned, window, top), rel=1e-5, abs=1e-6
        )


def test_the_divergence_grows_with_the_tokens_that_are_kept(dense, pruned, tiny_tokens):
    (window,) = windows(tiny_tokens, 1, 300)
    each = [Divergence(pruned, dense, top)(window) for top in (1, 4, 16, 64, 100_000)]
    assert each == sorted(each) and each[0] < each[-1]


def test_the_error_of_states_is_a_mean_over_tokens(dense, pruned, tiny_tokens):
    tokens = windows(tiny_tokens, 2, 50)
    found = evaluate(pruned, tokens, LOSSES["reconstruction"], dense=dense)
    for loss, window in zip(found.losses.tolist(), tokens, strict=True):
        with torch.no_grad():
            wanted, got = (
                model.base_model(window[None]).last_hidden_state[0, :-1].double()
                for model in (dense, pruned)
            )
        shares = [((g - w).norm() / w.norm()).square() for g, w in zip(got, wanted, strict=True)]
        assert loss == pytest.approx(float(torch.stack(shares).mean()), rel=1e-5)


@pytest.mark.parametrize("name", ["kl", "reconstruction"])
def test_a_distance_is_none_from_the_model_itself(dense, pruned, tiny_tokens, name: str):
    tokens = windows(tiny_tokens, 2, 64)
    same = evaluate(dense, tokens, LOSSES[name], dense=dense)
    other = evaluate(pruned, tokens, LOSSES[name], dense=dense)
    assert abs(same.mean) < 1e-6 < 1e-3 < other.mean


@pytest.mark.parametrize("name", ["kl", "reconstruction"])
def test_the_judged_weights_may_change_and_the_dense_text_is_read_once(
    dense, pruned, tiny_tokens, name: str
):
    (window,) = windows(tiny_tokens, 1, 64)
    judged, read = copy.deepcopy(dense), []
    hook = dense.base_model.register_forward_hook(lambda *_: read.append(1))
    try:
        measure = LOSSES[name].on(judged, dense)
        read.clear()
        before = measure(window)
        judged.load_state_dict(pruned.state_dict())
        after = measure(window)
    finally:
        hook.remove()
    assert abs(before) < 1e-6 and after > 1e-3
    assert len(read) == 1


@pytest.mark.parametrize("name", ["kl", "reconstruction"])
def test_one_model_has_no_distance(tiny_model_dir: Path, name: str):
    with pytest.raises(UsageError, match=f"the loss '{name}' compares"):
        gpprune.evaluate_model(str(tiny_model_dir), loss=name)
