"""Small models of several families, trained on the packaged text: where formulas can carry over to.

    python -m benchmarks.small_models DIR [--families llama gpt2 mixtral] [--epochs 8]

Each is a checkpoint `DIR/FAMILY` of a few million parameters with a tokenizer of 4,096 entries, all
of it learned from the calibration part of WikiText-2 alone. One that is there already is left as
it is. Printed is the perplexity on the validation part.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from benchmarks.flags import parser_of, positive
from benchmarks.shown import print_table, progress
from gpprune.errors import UsageError
from gpprune.evals import evaluate, read_text, windows
from gpprune.files import whole_folder
from gpprune.progress import Progress
from gpprune.prune import load_model

VOCABULARY, LENGTH = 4096, 256
_WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 192, "n_layer": 6, "n_head": 6, "n_positions": 1024}
_ENDS = {"bos_token_id": 0, "eos_token_id": 0}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 256}


@dataclass(frozen=True)
class Family:
    """A kind of model, by the name of its configuration in transformers."""

    config: str
    values: dict[str, Any]

    def made(self, seed: int) -> nn.Module:
        """An untrained model, in training mode."""
        torch.manual_seed(seed)
        config = getattr(transformers, self.config)(**self.values, **_ENDS)
        made: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        return made.train()


FAMILIES = {
    "llama": Family("LlamaConfig", _WIDE),
    "gpt2": Family("GPT2Config", _GPT2),
    "mixtral": Family("MixtralConfig", _WIDE | _EXPERTS | {"output_router_logits": True}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("small_models", __doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--epochs", type=positive, default=8)
    parser.add_argument("--batch", type=positive, default=16, help=f"sequences of {LENGTH} tokens")
    parser.add_argument("--text", default="wikitext2", help="trained and judged on")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    text = read_text(given.text, "calibration")
    tokenizer = tokenizer_of(text)
    rows = []
    with progress() as report:
        for name in given.families:
            start = time.perf_counter()
            folder = given.folder / name
            if not folder.exists():
                model: Any = FAMILIES[name].made(given.seed)
                ids = _ids(tokenizer, text)
                train(model, ids, given.epochs, given.batch, given.seed, name, report)
                with whole_folder(folder) as made:
                    model.save_pretrained(made)
                    tokenizer.save_pretrained(made)
            loaded = load_model(str(folder))
            unseen = _ids(loaded.tokenizer, read_text(given.text, "validation"))
            count = min(20, len(unseen) // LENGTH)
            judged = evaluate(loaded.model, windows(unseen, count, LENGTH), progress=report)
            size = sum(parameter.numel() for parameter in loaded.model.parameters())
            seconds = time.perf_counter() - start
            rows.append([name, f"{size:,}", f"{judged.figure:.2f}", f"{seconds:.0f}"])
    print_table(["family", "parameters", "validation perplexity", "seconds"], rows)


def tokenizer_of(text: str) -> transformers.PreTrainedTokenizerFast:
    """Byte pairs learned from a text; entry 0 marks the end of one."""
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learned.train_from_iterator(text.splitlines(keepends=True), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=learned, bos_token="<|end|>", eos_token="<|end|>"
    )


def _ids(tokenizer: Callable[..., Any], text: str) -> Tensor:
    """A text's tokens, int64."""
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def train(
    model: nn.Module, ids: Tensor, epochs: int, batch: int, seed: int, name: str, report: Progress
) -> None:
    """Train a model on a text in place, by AdamW under one cycle of the learning rate.

    Args:
        model: in training mode; in evaluation mode afterwards.
        ids: the text's tokens, `[tokens]`.
        epochs: how often it sees the text, each time cut at other places.
        batch: sequences a step.
        seed: of their order.
        name: of the model, for the bar.
        report: called as `report(label, done, total)`.

    Raises:
        UsageError: the text is too short for one batch.
    """
    steps = (len(ids) - LENGTH) // (batch * LENGTH)
    if steps < 1:
        raise UsageError(f"a text of {len(ids)} tokens has no batch of {batch} x {LENGTH}")
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        offset = int(torch.randint(LENGTH, (), generator=draw))
        rows = ids[offset:][: (len(ids) - offset) // LENGTH * LENGTH].view(-1, LENGTH)
        order = torch.randperm(len(rows), generator=draw)
        for step in range(steps):
            report(f"training {name}", epoch * steps + step, epochs * steps)
            taken = rows[order[step * batch : (step + 1) * batch]]
            loss = model(input_ids=taken, labels=taken).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
    report(f"training {name}", epochs * steps, epochs * steps)
    if not math.isfinite(float(loss.detach())):
        raise UsageError(f"training {name} diverged: give another --seed")
    model.eval()


if __name__ == "__main__":
    main()
