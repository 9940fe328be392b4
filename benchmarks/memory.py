"""Memory that calibrating curvature takes, on a random model and on one with more blocks.

    python -m benchmarks.memory [--hidden 768] [--blocks 6] [--times 4] [--update refit]

Each is measured in a process of its own, on Linux: the most that is resident while the Gram
matrices of inputs and gradients (`aaT`, `ggT`) are measured, less what was before, the model. With
``--update`` the model is pruned and updated by them, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from benchmarks.flags import UPDATE_NAMES, parser_of, positive, update_name
from gpprune.errors import UsageError
from gpprune.prune import ORDERS, Recipe, calibrate, prune_model

STATISTICS = ("aaT", "ggT")
_HANDED_ON = ("hidden", "samples", "length", "update", "order")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("memory", __doc__)
    parser.add_argument("--hidden", type=positive, default=768, help="width, a multiple of 8")
    parser.add_argument("--blocks", type=positive, default=6)
    parser.add_argument("--times", type=positive, default=4, help="how many times as many blocks")
    parser.add_argument("--samples", type=positive, default=2)
    parser.add_argument("--length", type=positive, default=128)
    parser.add_argument("--update", type=update_name, default="none", help=UPDATE_NAMES)
    parser.add_argument("--order", choices=ORDERS, default="dense", help="of --update")
    parser.add_argument("--child", action="store_true", help="measure one model, print bytes")
    given = parser.parse_args(arguments)
    if given.order != "dense" and given.update == "none":
        parser.error(f"--order {given.order} is of an update, and there is none: give --update")
    if given.child:
        tokens = torch.randint(256, (given.samples, given.length))
        print(peak(given.hidden, given.blocks, tokens, given.update, given.order))
        return
    found = []
    for blocks in (given.blocks, given.times * given.blocks):
        command = [sys.executable, "-m", "benchmarks.memory", "--child", f"--blocks={blocks}"]
        command += [f"--{name}={getattr(given, name)}" for name in _HANDED_ON]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise UsageError(f"measuring {blocks} blocks failed: {run.stderr.strip()}")
        found.append(int(run.stdout))
        print(f"{blocks:3} blocks: {found[-1] / 2**20:7.1f} MiB beyond the model", flush=True)
    print(f"{given.times} times the blocks take {found[1] / found[0]:.2f} times the memory")


def peak(hidden: int, blocks: int, tokens: torch.Tensor, update: str, order: str) -> int:
    """The most resident bytes while a random model is calibrated or pruned, less those before it.

    Args:
        hidden: width of the model.
        blocks: decoder blocks.
        tokens: `[samples, length]`, int64: the calibration text.
        update: of the weights that stay; "none": the model is calibrated alone.
        order: of pruning.

    Raises:
        UsageError: this is not Linux.
    """
    if not _RESET.exists():
        raise UsageError(f"the peak of a process's memory is read from {_STATUS}: run on Linux")
    _run(_model(64, 1), tokens, update, order)  # what the libraries load once
    model = _model(hidden, blocks)
    _RESET.write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    _run(model, tokens, update, order)
    return _status("VmHWM") - before


def _run(
    model: transformers.PreTrainedModel, tokens: torch.Tensor, update: str, order: str
) -> None:
    if update == "none":
        calibrate(model, tokens, STATISTICS)
        return
    recipe = Recipe(metric="kron-obd", sparsity=0.5, pattern="layer", update=update)
    prune_model(model, recipe, tokens, order=order)


def _model(hidden: int, blocks: int) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _status(name: str) -> int:
    """Bytes of a line of the process's status."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
