"""Prune a model that does not fit: a LLaMA of random weights, a block in memory at a time.

    python -m benchmarks.streaming [--hidden 4096] [--blocks 32] [--limit 10] [--patterns row 2:4]

The checkpoint, bfloat16 in files of up to 5 GB, is made in a temporary directory (of LLaMA-7B's
shape it takes 14 GB, and so does what is pruned) and removed in the end. Each pattern is pruned by
Wanda in a process of its own whose address space is limited, and then the first of them once more
with `--no-stream`: how that ends shows that the limit is one. On Linux.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers

from benchmarks.flags import parser_of, positive
from gpprune.errors import UsageError
from gpprune.prune import DTYPES, Stored, locate
from gpprune.prune.model.streamed.shards import Shards

_SHARD = 5 * 10**9  # bytes of a file


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of("streaming", __doc__)
    parser.add_argument("--hidden", type=positive, default=4096, help="width")
    parser.add_argument("--inner", type=positive, default=11008, help="width inside the MLPs")
    parser.add_argument("--blocks", type=positive, default=32)
    parser.add_argument("--heads", type=positive, default=32)
    parser.add_argument("--samples", type=positive, default=8, help="calibration sequences")
    parser.add_argument("--length", type=positive, default=512, help="tokens a sequence")
    parser.add_argument("--limit", type=positive, default=10, help="GiB of address space")
    parser.add_argument("--patterns", nargs="+", default=["row", "2:4"])
    parser.add_argument("--tokenizer", default="smollm2", help="of the model of this name")
    parser.add_argument("--folder", type=Path, help="where the directory is made")
    given = parser.parse_args(arguments)
    with TemporaryDirectory(dir=given.folder) as folder:
        source, pruned = Path(folder, "dense"), Path(folder, "pruned")
        size = make(source, given.hidden, given.inner, given.blocks, given.heads, given.tokenizer)
        print(f"{size / 1e9:.2f} thousand million weights, bfloat16", flush=True)
        for pattern in given.patterns:
            command = _command(source, pruned, pattern, given.samples, given.length)
            print(f"{pattern}: {_run([*command, '--stream'], given.limit)}", flush=True)
            subprocess.run(["rm", "-rf", pruned], check=True)
        command = _command(source, pruned, given.patterns[0], given.samples, given.length)
        print(f"in memory: {_run([*command, '--no-stream'], given.limit)}")


def make(folder: Path, hidden: int, inner: int, blocks: int, heads: int, tokenizer_of: str) -> int:
    """Write a LLaMA of random weights, tensor by tensor.

    Args:
        folder: to be made.
        hidden: width.
        inner: width inside the MLPs.
        blocks: decoder blocks.
        heads: of attention, also of keys and values.
        tokenizer_of: the model that has its tokenizer.

    Returns:
        How many weights it has.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate(tokenizer_of))
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model: Any = transformers.LlamaForCausalLM(config)
    dtypes = {name: DTYPES["bfloat16"] for name, _ in model.named_parameters()}
    shards = Shards(folder, model, Stored(dtypes, _SHARD))
    shards.begin()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        scale = torch.ones(()) if parameter.ndim < 2 else torch.tensor(hidden**-0.5)
        values = torch.randn(parameter.shape, generator=draw) * scale
        shards.put([(name, values.abs() if parameter.ndim < 2 else values)])
    if shards.index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(shards.index))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())


def _command(source: Path, pruned: Path, pattern: str, samples: int, length: int) -> list[str]:
    command = [sys.executable, "-m", "gpprune", "prune", f"--model={source}", f"--out={pruned}"]
    command += [f"--pattern={pattern}", "--metric=wanda", "--json"]
    return [*command, f"--calibration-samples={samples}", f"--window-length={length}"]


def _run(command: Sequence[str], limit: int) -> str:
    """How a command ended under a limit of its address space in GiB, in words."""
    if not sys.platform.startswith("linux"):
        raise UsageError("the limit of an address space is Linux's: run there")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit * 2**30, limit * 2**30))

    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=limited) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    peak = f"at most {used.ru_maxrss / 2**20:.2f} GiB resident under a limit of {limit} GiB"
    if process.returncode:
        return f"ended with {process.returncode}, {peak}"
    found = json.loads(output)
    told = f"{found['zeros']:,} of {found['size']:,} weights are 0, {peak}"
    told += f", {time.perf_counter() - start:.0f} s"
    blocks = found.get("streamed")
    return f"{told}, {sum(blocks) / len(blocks):.1f} s a block" if blocks else told


if __name__ == "__main__":
    main()
