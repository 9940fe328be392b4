"""Calibration text that the dense model writes itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_families import tiny
from torch import Tensor, nn
from transformers import GenerationConfig

from gpprune import errors
from gpprune.progress import silent
from gpprune.prune import Recipe, calibrate, linear_layers, load_model, prune_model
from gpprune.prune.measure.synthetic import PIECE, Writer, synthetic_samples
from gpprune.prune.model.run import quiet_model
from gpprune.prune.once import prune_once
from gpprune.prune.shots import mean_loss
from gpprune.prune.stage import Stage


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (3, 24), generator=torch.Generator().manual_seed(0))


def decided(family: str) -> nn.Module:
    """A model that all but surely writes one next token, which hangs on all that came before."""
    model = tiny(family).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, logits: 1e4 * logits)
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "opt", "mamba", "mixtral", "qwen3moe", "gptoss", "deepseek"]
)
def test_each_piece_goes_on_from_the_text_as_the_model_predicts(family: str, sequences: Tensor):
    model = decided(family)
    written = synthetic_samples(model, sequences, 5)
    assert written.shape == (5, 24)
    prompts = sequences.unfold(1, 12, 1).flatten(0, 1).tolist()
    hangs_on_more = False
    for row in written:
        assert row[:12].tolist() in prompts
        for length in range(12, 24):  # without any cache
            before = row[None, :length]
            assert int(row[length]) == predicted(model, before)
            hangs_on_more |= int(row[length]) != predicted(model, before[:, -4:])
    assert hangs_on_more


@torch.no_grad()
def predicted(model: nn.Module, tokens: Tensor) -> int:
    return int(model(tokens, use_cache=False).logits[0, -1].argmax())


def test_the_next_token_is_drawn_as_often_as_it_is_likely():
    model = tiny("llama").eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
        logits = model(torch.tensor([[5, 9]])).logits[0, -1]
    model.generation_config.eos_token_id = None
    written = synthetic_samples(model, torch.tensor([[5, 9, 5, 9]]), 4500)
    rows = written[(written[:, :2] == torch.tensor([5, 9])).all(1)]
    seen = torch.bincount(rows[:, 2], minlength=64) / len(rows)

    def distance(likely: Tensor) -> float:
        return 0.5 * float((seen - likely).abs().sum())

    likely = logits.softmax(-1)
    assert len(rows) > 2500
    assert distance(likely) < 0.07  # of so many draws from 64 tokens it is 0.05 and less
    assert distance((logits / 1.5).softmax(-1)) > 0.1
    assert distance((logits * 1.5).softmax(-1)) > 0.1


def test_a_piece_does_not_end_early(sequences: Tensor):
    model = tiny("llama").eval()
    model.generation_config.eos_token_id = [3, 5]
    model.lm_head.register_forward_hook(all_but_surely_ends)
    written = synthetic_samples(model, sequences, 40)
    assert written.shape == (40, 24)
    assert not bool(torch.isin(written[:, 12:], torch.tensor([3, 5])).any())


def all_but_surely_ends(_: nn.Module, __: object, logits: Tensor) -> Tensor:
    logits[..., [3, 5]] += 50
    return logits


def test_long_sequences_are_of_several_pieces():
    class Counting(nn.Module):
        """Writes the token after the last one."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.generation_config = GenerationConfig()

        def generate(self, prompts: Tensor, **_: object) -> Tensor:
            length = self.generation_config.max_length
            assert length is not None
            more = prompts[:, -1:] + torch.arange(1, length - prompts.shape[1] + 1)
            return torch.cat([prompts, more], 1)

    text = torch.arange(2 * PIECE + 1).repeat(2, 1)
    written = synthetic_samples(Counting(), text, 9)
    assert written.shape == (9, 2 * PIECE + 1)
    jumps = (written.diff(dim=1) != 1).nonzero()[:, 1] + 1
    third = -(-(2 * PIECE + 1) // 3)  # even pieces
    assert set(jumps.tolist()) == {third, 2 * third}


@settings(max_examples=20)
@given(samples=st.integers(1, 3), length=st.integers(2, 20), count=st.integers(1, 4))
def test_they_are_as_long_as_the_text_and_of_known_tokens(samples: int, length: int, count: int):
    text = torch.randint(64, (samples, length), generator=torch.Generator().manual_seed(length))
    written = synthetic_samples(tiny("llama").eval(), text, count)
    assert written.shape == (count, length)
    assert written.dtype == torch.int64
    assert int(written.min()) >= 0
    assert int(written.max()) < 64


def test_the_same_seed_writes_the_same_and_leaves_the_global_draws_alone(sequences: Tensor):
    model = tiny("llama").eval()
    before = torch.get_rng_state()
    first = synthetic_samples(model, sequences, 40)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(77)
    assert torch.equal(synthetic_samples(model, sequences, 40), first)
    assert not torch.equal(synthetic_samples(model, sequences, 40, seed=1), first)


def test_how_a_model_would_rather_chat_has_no_part(sequences: Tensor):
    model = tiny("llama").eval()
    first = synthetic_samples(model, sequences, 4)
    chat = {"repetition_penalty": 5.0, "temperature": 0.1, "no_repeat_ngram_size": 1, "top_p": 0.1}
    for name, value in chat.items():
        setattr(model.generation_config, name, value)
    assert torch.equal(synthetic_samples(model, sequences, 4), first)
    assert model.generation_config.temperature == 0.1


def test_progress_is_told_up_to_the_end(sequences: Tensor):
    told: list[tuple[int, int]] = []
    model = tiny("llama").eval()
    synthetic_samples(model, sequences, 40, progress=lambda _, *done: told.append(done))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]


def test_a_model_that_cannot_write_is_refused(sequences: Tensor):
    with pytest.raises(errors.UsageError, match=r"Linear cannot write .* no generate\(\)"):
        synthetic_samples(nn.Linear(2, 2), sequences, 1)

    class Mute(nn.Linear):
        generation_config = GenerationConfig()

        def generate(self, *_: object, **__: object) -> Tensor:
            raise ValueError("it takes\nan image")

    mute = Mute(2, 2)
    with pytest.raises(errors.UsageError, match=r"Mute cannot write .* \(it takes\)"):
        synthetic_samples(mute, sequences, 1)
    assert mute.generation_config is Mute.generation_config


def test_what_is_damaged_outside_the_blocks_is_said(sequences: Tensor):
    model = tiny("llama").eval()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(errors.GppruneError, match="predicts is NaN or infinite"):
        synthetic_samples(model, sequences, 1)


def test_a_model_in_bfloat16_writes_too(sequences: Tensor):
    written = synthetic_samples(tiny("llama").eval().to(torch.bfloat16), sequences, 3)
    assert written.shape == (3, 24)


@pytest.mark.parametrize(
    ("order", "update"),
    [
        ("dense", "none"),
        ("dense", "refit"),
        ("sequential", "none"),
        ("true-sequential", "least-squares"),
        ("corrected", "kron-admm"),
    ],
)
@pytest.mark.parametrize("metric", ["wanda", "mul(abs(W), G)", "kron-obd"])
def test_everything_is_measured_on_them_too(
    metric: str, order: str, update: str, sequences: Tensor
):
    recipe = Recipe(metric=metric, pattern="model", sparsity=0.5, update=update)
    model = tiny("llama").eval()
    by_hand, plain = copy.deepcopy(model), copy.deepcopy(model)
    longer = torch.cat([sequences, synthetic_samples(model, sequences, 4)])
    prune_model(model, recipe.model_copy(update={"synthetic_samples": 4}), sequences, order=order)
    prune_model(by_hand, recipe, longer, order=order)
    prune_model(plain, recipe, sequences, order=order)
    assert same(model, by_hand)
    assert not same(model, plain)


@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_statistics_of_the_given_text_alone_do_not_stand_in(order: str, sequences: Tensor):
    recipe = Recipe(metric="kron-obd", pattern="model", sparsity=0.5, synthetic_samples=4)
    model = tiny("llama").eval()
    sharing = copy.deepcopy(model)
    dense = calibrate(model, sequences, recipe.reads)
    prune_model(model, recipe, sequences, order=order)
    prune_model(sharing, recipe, sequences, order=order, dense=dense)
    assert same(model, sharing)


def test_each_shot_has_more_text_that_the_dense_model_wrote(sequences: Tensor, tmp_path: Path):
    recipe = Recipe(metric="kron-obd", pattern="model", sparsity=0.5, update="refit(3)", shots=2)
    model = tiny("llama").eval()
    by_hand, broken = copy.deepcopy(model), copy.deepcopy(model)
    more = recipe.model_copy(update={"synthetic_samples": 4})
    found = prune_model(model, more, sequences)
    held: dict[str, Tensor] = {}
    written = synthetic_samples(by_hand, sequences, 8)
    for part, own, shot in zip((0.5, 1.0), (written[:4], written), found.shots, strict=True):
        text = torch.cat([sequences, own])
        with quiet_model(by_hand):
            assert shot.before == mean_loss(by_hand, text)
            stage = Stage(part, held)
            held = prune_once(by_hand, recipe, text, "sequential", silent, stage).masks
            assert shot.after == mean_loss(by_hand, text)
    assert same(model, by_hand)

    dense = copy.deepcopy(broken)
    told: list[str] = []

    def stop(label: str, done: int, total: int) -> None:
        if label == "shots" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(broken, more, sequences, keep=tmp_path / "kept", progress=stop)
    kept = tmp_path / "kept"
    prune_model(dense, more, sequences, keep=kept, progress=lambda label, *_: told.append(label))
    assert same(model, dense)
    assert "shots" in told
    assert "writing calibration text" not in told  # it is kept


def test_recipes_share_what_is_written(sequences: Tensor):
    dense = tiny("llama").eval()
    writer = Writer(dense, sequences)
    told: list[str] = []
    for sparsity in (0.5, 0.7):
        recipe = Recipe(metric="wanda", sparsity=sparsity, synthetic_samples=4)
        sharing, alone = copy.deepcopy(dense), copy.deepcopy(dense)
        prune_model(
            sharing, recipe, sequences, writer=writer, progress=lambda label, *_: told.append(label)
        )
        prune_model(alone, recipe, sequences)
        assert same(sharing, alone)
    assert told.count("writing calibration text") == 12  # the tokens of its one batch


@pytest.mark.parametrize("family", ["llama", "rwkv"])  # the latter hands a cache to its blocks
def test_a_writer_writes_each_number_once(family: str, sequences: Tensor):
    model = tiny(family).eval()
    writer = Writer(model, sequences)
    assert writer(0) is None
    first = writer(4)
    assert first is not None
    assert torch.equal(first, synthetic_samples(model, sequences, 4))
    assert writer(4) is first
    fewer = writer(3)
    assert fewer is not None
    assert fewer.shape == (3, 24)


@pytest.mark.parametrize(
    ("metric", "order"), [("wanda", "dense"), ("mul(abs(W), G)", "sequential")]
)
def test_a_model_whose_blocks_are_no_chain_reads_them_in_one_pass_alone(
    metric: str, order: str, sequences: Tensor
):
    model = tiny("llama").eval()
    model.model.layers[1].register_forward_pre_hook(lambda _, given: (given[0] / 2, *given[1:]))
    by_hand = copy.deepcopy(model)
    told: list[str] = []
    recipe = Recipe(metric="wanda", sparsity=0.5, synthetic_samples=4)
    with pytest.raises(errors.GppruneError, match="in one pass with order='dense'"):
        prune_model(model, recipe, sequences, progress=lambda label, *_: told.append(label))
    assert "writing calibration text" not in told
    longer = torch.cat([sequences, synthetic_samples(model, sequences, 4)])
    more = Recipe(metric=metric, sparsity=0.5, synthetic_samples=4)
    prune_model(model, more, sequences, order=order)
    prune_model(by_hand, Recipe(metric=metric, sparsity=0.5), longer, order=order)
    assert same(model, by_hand)


def test_they_are_refused_where_nothing_is_measured_on_them():
    how = {"metric": "magnitude", "sparsity": 0.5, "synthetic_samples": 4}
    with pytest.raises(errors.UsageError, match="4 synthetic samples are of no use"):
        Recipe(**how)
    Recipe(**how, update="least-squares")
    Recipe(**how, allocation="snip", order="dense")
    Recipe(**how, allocation="besa")
    with pytest.raises(errors.UsageError, match="synthetic_samples is -1"):
        Recipe(sparsity=0.5, synthetic_samples=-1)


def test_a_recipe_states_them_where_there_are_any(tmp_path: Path):
    assert "synthetic_samples" not in Recipe(sparsity=0.5).model_dump()
    recipe = Recipe(sparsity=0.5, synthetic_samples=4)
    recipe.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe


def test_a_trained_model_predicts_what_it_wrote_better_than_noise(
    tiny_model_dir: Path, tiny_tokens: Tensor
):
    model = load_model(str(tiny_model_dir)).model
    text = tiny_tokens[:256].view(4, 64)
    written = synthetic_samples(model, text, 8)
    noise = torch.randint(1, 512, written.shape, generator=torch.Generator().manual_seed(0))
    noise[:, :32] = written[:, :32]
    assert loss(model, written, 32) < loss(model, noise, 32) - 1


def loss(model: nn.Module, tokens: Tensor, start: int) -> float:
    with torch.no_grad():
        logits = model(tokens).logits[:, start - 1 : -1].flatten(0, 1)
    return float(nn.functional.cross_entropy(logits, tokens[:, start:].flatten()))


def same(model: nn.Module, other: nn.Module) -> bool:
    others = linear_layers(other)
    return all(
        torch.equal(layer.weight, others[name].weight)
        for name, layer in linear_layers(model).items()
    )
