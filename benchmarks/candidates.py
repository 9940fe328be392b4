"""Candidates an hour on SmolLM2-135M: ours against the loop of the published repositories."""

from __future__ import annotations

import time

import torch

from gpprune.evals import (
    MetricFitness,
    calibration_samples,
    compute_dtype,
    read_text,
    tokenize,
    windows,
)
from gpprune.primitives import published
from gpprune.prune import calibrate, linear_layers, load_model

from .rival import eager, sorted_mask

WINDOWS, LENGTH, SPARSITY = 8, 512, 0.5
FORMULAS = ("wanda", "ria", "pruner-zero")


def main() -> None:
    """Print candidates an hour at full fidelity, and the ratio."""
    loaded = load_model("smollm2")
    judged = windows(
        tokenize(read_text("wikitext2", "validation"), loaded.tokenizer), WINDOWS, LENGTH
    )
    tokens = tokenize(read_text("wikitext2", "calibration"), loaded.tokenizer)
    measured = calibrate(loaded.model, calibration_samples(tokens, 2, LENGTH, 0), ["X", "Y", "G"])
    fitness = MetricFitness(
        loaded.model,
        measured,
        judged,
        sparsity=SPARSITY,
        pattern="row",
        dtype=compute_dtype("auto"),
    )
    ours = rival = 0.0
    for name in FORMULAS:
        start = time.perf_counter()
        fitness.prepare(published[name].canonical("row"))(0, WINDOWS)
        ours += time.perf_counter() - start
    dense = {name: layer.weight.clone() for name, layer in linear_layers(loaded.model).items()}
    for name in FORMULAS:
        start = time.perf_counter()
        _published_loop(loaded.model, dense, measured, judged, name)
        rival += time.perf_counter() - start
    count = len(FORMULAS)
    print(f"candidates an hour on SmolLM2-135M, {WINDOWS} windows of {LENGTH} tokens, all judged")
    print(f"gpprune {3600 * count / ours:.0f}")
    print(f"eager tree, stable sorts, float32 {3600 * count / rival:.0f}  ratio {rival / ours:.2f}")


@torch.no_grad()
def _published_loop(model, dense, measured, judged, name):  # type: ignore[no-untyped-def]
    for layer_name, layer in linear_layers(model).items():
        found = measured[layer_name]
        terminals = {**found, "W": dense[layer_name]}
        scores = eager(published[name], terminals)
        layer.write(dense[layer_name].masked_fill(sorted_mask(scores, SPARSITY), 0))
    for window in judged:
        logits = model(window[None]).logits[0, :-1].float()
        torch.nn.functional.cross_entropy(logits, window[1:])
