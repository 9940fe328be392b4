"""A tiny text, and tiny trained models as Hugging Face directories, shared by all rooms."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

# A busy machine is no failure: no example has to end within a time.
settings.register_profile("gpprune", deadline=None)
settings.load_profile("gpprune")

# Side by side with others, a process of tests has one thread, and so has what it starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from tests that are not for it: what they load would else lie there."""
    chosen = config.getoption("markexpr")
    if "gpu" not in chosen or "not gpu" in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


VOCABULARY = 512
_STEPS = 60  # enough for the losses to tell a good mask from a bad one, in a few seconds
_END = "<|endoftext|>"


def _sentence(draw: random.Random) -> str:
    """A sentence of a small grammar, with words that agree so that there is something to learn."""
    subject, verb = draw.choice(
        [("river", "flows"), ("farmer", "walks"), ("engine", "turns"), ("child", "reads")]
    )
    place = {"river": "valley", "farmer": "field", "engine": "factory", "child": "library"}[subject]
    colour = draw.choice(["green", "quiet", "ancient", "narrow", "bright"])
    time = draw.choice(["in the morning", "before winter", "every day", "after the rain"])
    count = draw.randint(2, 40)
    return draw.choice(
        [
            f"The {colour} {subject} {verb} through the {place} {time} .",
            f"There are {count} roads that lead to the {colour} {place} .",
            f"When the {subject} {verb} {time} , the {place} is {colour} .",
            f"He counted {count} and then {count + 1} of them near the {place} .",
        ]
    )


def _text(words: int) -> str:
    draw = random.Random(20)
    lines: list[str] = []
    total = 0
    while total < words:
        line = " ".join(_sentence(draw) for _ in range(draw.randint(2, 6)))
        lines.append(f" {line} ")
        total += len(line.split())
    return "\n".join(lines)


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """Some 6,000 words of a small deterministic grammar, one paragraph a line."""
    return _text(6000)


@pytest.fixture(scope="session")
def text_file(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text as a file."""
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 512 tokens, trained on the tiny text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tiny_text.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, bos_token=_END)


@pytest.fixture(scope="session")
def tiny_tokens(tiny_text: str, tiny_tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The tiny text's tokens, int64 ``[tokens]``."""
    return torch.tensor(tiny_tokenizer(tiny_text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="session")
def tiny_model_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_tokens: torch.Tensor,
) -> Path:
    """A Hugging Face directory with a briefly trained Llama of two blocks and its tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return _trained(LlamaForCausalLM, config, tiny_tokens, tiny_tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_gpt2_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_tokens: torch.Tensor,
) -> Path:
    """The same as a GPT-2, whose linear layers are ``Conv1D`` with weights ``[in, out]``."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_inner=96,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    return _trained(GPT2LMHeadModel, config, tiny_tokens, tiny_tokenizer, folder)


def _trained(
    model_class: Any,
    config: Any,
    tokens: torch.Tensor,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
) -> Path:
    """Train a model on the tokens for a few seconds, from one seed, and save it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        windows = tokens[: len(tokens) // 64 * 64].view(-1, 64)
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(_STEPS):
            batch = windows[torch.randint(len(windows), (16,))]
            logits = model(batch).logits[:, :-1].flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if shown:
        transformers_logging.enable_progress_bar()
    return folder
