from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from gpprune.errors import UsageError
from gpprune.evals import Evaluation, WindowLoss, evaluate, window_losses, windows


@pytest.fixture(scope="module", params=["tiny_model_dir", "tiny_gpt2_dir"])
def model(request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(request.param)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def capped_model():
    """A model that caps its logits, so that its head alone does not give them."""
    config = Gemma2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config).eval()


def independent_losses(model, tokens: torch.Tensor) -> torch.Tensor:
    """Each window's mean loss in float64 from the model's own logits, token by token."""
    losses = []
    for window in tokens:
        with torch.no_grad():
            logits = model(window[None]).logits[0].double()
        log_likelihoods = torch.log_softmax(logits, dim=-1)
        wanted = [-log_likelihoods[i, token] for i, token in enumerate(window[1:].tolist())]
        losses.append(torch.stack(wanted).mean())
    return torch.stack(losses)


@pytest.mark.parametrize("length", [2, 3, 64, 256, 257, 258, 400])
def test_losses_are_those_of_the_logits(model, tiny_tokens, length: int):
    tokens = windows(tiny_tokens, 3, length)
    losses = window_losses(model, tokens)
    assert losses.dtype == torch.float64 and losses.shape == (3,)
    torch.testing.assert_close(losses, independent_losses(model, tokens), rtol=1e-6, atol=1e-6)


def test_capped_logits_stay_capped(capped_model, tiny_tokens):
    tokens = windows(tiny_tokens, 2, 300)
    wanted = independent_losses(capped_model, tokens)
    torch.testing.assert_close(window_losses(capped_model, tokens), wanted, rtol=1e-6, atol=1e-6)


def test_losses_follow_the_dtype_of_the_model(model, tiny_tokens):
    tokens = windows(tiny_tokens, 2, 128)
    half = type(model)(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.eval()
    torch.testing.assert_close(
        window_losses(half, tokens), independent_losses(half, tokens), rtol=1e-6, atol=1e-6
    )


def test_a_window_is_judged_alone(model, tiny_tokens):
    tokens = windows(tiny_tokens, 6, 80)
    whole = window_losses(model, tokens)
    assert torch.equal(whole[2:4], window_losses(model, tokens[2:4]))
    loss = WindowLoss(model)
    assert [loss(window) for window in tokens] == whole.tolist()


def test_losses_see_weights_that_change_later(model, tiny_tokens):
    window = tiny_tokens[:100]
    loss = WindowLoss(model)
    before = loss(window)
    head = model.get_output_embeddings().weight
    kept = head.detach().clone()
    try:
        head.data.zero_()
        assert loss(window) == pytest.approx(math.log(len(head)), rel=1e-6)
    finally:
        head.data.copy_(kept)
    assert loss(window) == before


def test_progress_counts_windows(model, tiny_tokens):
    calls: list[tuple[str, int, int]] = []
    window_losses(model, windows(tiny_tokens, 3, 16), lambda *call: calls.append(call))
    assert [call[1:] for call in calls] == [(1, 3), (2, 3), (3, 3)]


def test_judging_leaves_no_gradient_behind(model, tiny_tokens):
    window_losses(model, windows(tiny_tokens, 1, 16))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(0, 8, dtype=torch.int64),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(8, dtype=torch.int64),
        torch.zeros(2, 8),
    ],
)
def test_windows_that_predict_nothing_are_usage_errors(model, bad: torch.Tensor):
    with pytest.raises(UsageError, match="windows"):
        window_losses(model, bad)


def test_an_evaluation_gives_mean_and_perplexity(model, tiny_tokens):
    tokens = windows(tiny_tokens, 4, 50)
    verdict = evaluate(model, tokens)
    wanted = float(independent_losses(model, tokens).mean())
    assert verdict.mean == pytest.approx(wanted, rel=1e-6)
    assert verdict.figure == pytest.approx(math.exp(wanted), rel=1e-5)


@settings(max_examples=50)
@given(losses=st.lists(st.floats(0, 2000), min_size=1, max_size=8))
def test_perplexity_is_never_an_error(losses: list[float]):
    verdict = Evaluation(torch.tensor(losses, dtype=torch.float64))
    assert min(losses) - 1e-9 <= verdict.mean <= max(losses) + 1e-9
    assert verdict.figure >= 1 - 1e-9
