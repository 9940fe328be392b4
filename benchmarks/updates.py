"""Weight updates against SparseGPT's on Wanda's mask: seconds, and what the change costs.

    python -m benchmarks.updates [--layers N] [--updates refit "least-squares(3)" surgeon]

The cost of a layer is the quadratic 1/2 <D, G D A> of the change D, with the layer's own factors
undamped, as a share of what it is when the weights that stay are left as they are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.flags import (
    UPDATE_NAMES,
    add_layers,
    add_length,
    add_model,
    parser_of,
    positive,
    update_name,
)
from benchmarks.shown import print_table, progress
from benchmarks.subject import first_layers
from gpprune.discover import Texts, Workbench
from gpprune.prune import (
    UPDATES,
    calibrate,
    linear_layers,
    load_model,
    predicted_increase,
    prune_layer,
    prune_mask,
)

UPDATED = ("refit", "least-squares", "least-squares(3)", "sparsegpt", "surgeon")
RIVAL = "sparsegpt"
READS = frozenset({"X", "aaT", "ggT"})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("updates", __doc__)
    add_model(parser)
    add_layers(parser)
    add_length(parser)
    parser.add_argument("--samples", type=positive, default=16, help="calibration sequences")
    parser.add_argument(
        "--updates", nargs="+", type=update_name, default=UPDATED, help=UPDATE_NAMES
    )
    given = parser.parse_args(arguments)
    for name in given.updates:
        if UPDATES.find(name).keeps:
            parser.error(f"the update {name!r} changes no weight: name another")
    measure(given.model, given.layers, given.length, given.samples, given.updates)


def measure(
    model: str, layers: int | None, length: int, samples: int, updates: Sequence[str]
) -> None:
    """Print seconds and costs of each update, and their ratios to SparseGPT's in the same run.

    Args:
        model: what `gpprune.load_model` takes.
        layers: how many of the model's layers, from the first; None for all.
        length: tokens a calibration sequence.
        samples: how many calibration sequences.
        updates: names of `UPDATES`.
    """
    texts = Texts(windows=1, window_length=length, calibration_samples=samples)
    loaded = load_model(model, device="cpu")
    bench = Workbench(loaded, texts, dtype="float32", names=READS)
    chosen = first_layers(linear_layers(bench.loaded.model), layers)
    names = list(dict.fromkeys([RIVAL, *updates]))
    seconds, costs = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    with progress() as report:
        measured = calibrate(bench.loaded.model, bench.calibration(), READS, progress=report)
        for done, (layer_name, layer) in enumerate(chosen.items(), start=1):
            statistics = measured.pop(layer_name)
            weight, A, G = layer.weight, statistics["aaT"], statistics["ggT"]
            mask = prune_mask(weight.abs() * statistics["X"], 0.5, "row")
            zeroed = predicted_increase(weight, weight.masked_fill(mask, 0), A, G)
            out = torch.empty_like(weight)
            for name in names:
                start = time.perf_counter()
                prune_layer(weight, mask, statistics, name, out)
                seconds[name] += time.perf_counter() - start
                costs[name] += predicted_increase(weight, out, A, G) / zeroed / len(chosen)
            report("updating", done, len(chosen))
    rows = [
        [
            name,
            f"{seconds[name]:.2f}",
            f"{seconds[name] / seconds[RIVAL]:.2f}",
            f"{costs[name]:.3f}",
            f"{costs[name] / costs[RIVAL]:.3f}",
        ]
        for name in names
    ]
    print_table(
        ["update", "seconds", "ratio", "cost", "ratio"],
        rows,
        title=f"{len(chosen)} layers of {model}, half pruned by Wanda, ratios to {RIVAL}",
    )


if __name__ == "__main__":
    main()
