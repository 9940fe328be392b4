"""Tokens judged a second: ours against transformers' plain model, and the peak of its products.

    python -m benchmarks.roofline [--model smollm2] [--length 512] [--passes 5]

The peak is that of the model's own matrix products, head included, each alone in its shape and in
the dtype that is judged in. A share of it is the time that these take alone, over the time that a
pass takes; attention's own products do not count. All take turns, and the fastest pass of each
counts. A mixture of experts has no such peak: no token comes to all of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.flags import add_length, add_model, parser_of, positive
from benchmarks.shown import print_table
from gpprune.discover import Texts, Workbench
from gpprune.evals import WindowLoss
from gpprune.prune import linear_layers, load_model


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("roofline", __doc__)
    add_model(parser)
    add_length(parser)
    parser.add_argument("--passes", type=positive, default=5, help="of each, in turns")
    given = parser.parse_args(arguments)
    loaded = load_model(given.model, device="cpu")
    bench = Workbench(loaded, Texts(windows=1, window_length=given.length))
    (window,) = bench.windows("validation")
    judged = bench.judged
    readers: dict[str, Callable[[], object]] = {
        f"transformers, {_name(loaded.model)}": partial(_plain, loaded.model, window),
        f"transformers, {_name(judged)}": partial(_plain, judged, window),
        f"gpprune, {_name(judged)}": partial(WindowLoss(judged), window),
    }
    shapes = _products(judged)
    products = {shape: _product(shape, given.length, judged) for shape in shapes}
    timed: dict[Hashable, Callable[[], object]] = {}
    seconds = _fastest(timed | readers | products, given.passes)
    alone = sum(seconds[shape] * count for shape, count in shapes.items())
    flops = sum(2 * given.length * out * width * count for (out, width), count in shapes.items())
    plain = seconds[next(iter(readers))]
    rows = [
        [
            reader,
            f"{given.length / seconds[reader]:.0f}",
            f"{plain / seconds[reader]:.2f}",
            f"{alone / seconds[reader]:.2f}",
        ]
        for reader in readers
    ]
    print_table(
        ["", "tokens a second", "ratio", "of the peak"],
        rows,
        title=f"{given.model}, a window of {given.length} tokens; the peak is "
        f"{flops / alone / 1e12:.3f} TFLOPS in {_name(judged)}",
    )


def _plain(model: Any, window: Tensor) -> float:
    return float(model(input_ids=window[None], labels=window[None], use_cache=False).loss)


def _products(model: Any) -> Counter[tuple[int, int]]:
    """How often each shape ``[out, in]`` is multiplied with in a pass."""
    weights = [layer.weight for layer in linear_layers(model).values()]
    shapes = (weight.shape for weight in (*weights, model.get_output_embeddings().weight))
    return Counter((out, width) for out, width in shapes)


def _product(shape: tuple[int, int], tokens: int, model: nn.Module) -> Callable[[], object]:
    like = next(model.parameters())
    return partial(linear, like.new_ones(tokens, shape[1]), like.new_ones(shape))


def _fastest(turns: Mapping[Hashable, Callable[[], object]], passes: int) -> dict[Hashable, float]:
    """Seconds of the fastest pass of each, after one that is not timed."""
    seconds: dict[Hashable, list[float]] = {key: [] for key in turns}
    for _ in range(passes + 1):
        for key, run in turns.items():
            start = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - start)
    return {key: min(taken[1:]) for key, taken in seconds.items()}


def _name(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
