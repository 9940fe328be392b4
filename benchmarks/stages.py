"""Seconds of what a candidate passes through, on a random model of SmolLM2-135M's shape.

    python -m benchmarks.stages [--samples 8] [--length 2048] [--blocks 30] [--hidden 576]

The model lies on the GPU if torch sees one. What weights it has costs no time. It takes minutes on
a GPU, and an hour on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import transformers
from torch import nn

from benchmarks.flags import parser_of, positive
from benchmarks.shown import print_table
from gpprune.discover import MetricGoal
from gpprune.evals import MetricMasking, ModelFitness, copy_as
from gpprune.primitives import published
from gpprune.prune import Recipe, calibrate, linear_layers, prune_model
from gpprune.prune.model.load import default_device

PRUNED = [("refit", "dense"), ("admm", "dense"), ("admm", "corrected"), ("kron-admm", "corrected")]
_VOCABULARY = 49_152


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("stages", __doc__)
    parser.add_argument("--samples", type=positive, default=8, help="calibration sequences")
    parser.add_argument("--length", type=positive, default=2048, help="tokens of each")
    parser.add_argument("--blocks", type=positive, default=30)
    parser.add_argument("--hidden", type=positive, default=576, help="width, a multiple of 18")
    given = parser.parse_args(arguments)
    device = default_device()
    model = _model(given.hidden, given.blocks).to(device)
    tokens = torch.randint(_VOCABULARY, (given.samples, given.length))
    names = sorted(MetricGoal(update="kron-admm").statistics)
    calibrate(model, tokens[:1, :8], names)  # what the libraries make once
    rows: list[list[str]] = []

    def note(stage: str, run: Callable[[], object]) -> None:
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        rows.append([stage, f"{time.perf_counter() - start:.2f}"])

    statistics = calibrate(model, tokens, names)
    note("all statistics that a search may read", partial(calibrate, model, tokens, names))
    masking = MetricMasking(model, statistics, sparsity=0.6, pattern="model")
    fitness = ModelFitness(masking, tokens, dtype=torch.bfloat16)
    for name in ("wanda", "kron-obd"):
        formula = published[name].canonical("model")
        note(f"masks of {name}, 2 windows judged", partial(fitness.evaluate, formula, tokens[:2]))
    work = copy_as(model)
    for update, order in PRUNED:
        for name, layer in linear_layers(work).items():
            layer.write(masking.layers[name].weight)
        recipe = Recipe(metric="kron-obd", pattern="model", sparsity=0.6, update=update)
        prune = partial(prune_model, work, recipe, tokens, order=order, dense=statistics)
        note(f"{update}, {order}", prune)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print_table(["stage", "seconds"], rows, title=f"{given.samples} x {given.length} on {name}")


def _model(hidden: int, blocks: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=blocks,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
