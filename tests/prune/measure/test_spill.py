"""What waits on disk: in memory there is one block, and nothing stays behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from gpprune.errors import GppruneError
from gpprune.primitives import STATISTICS, Statistic
from gpprune.prune import MEASURERS, LinearLayer, Measurer, calibrate
from gpprune.prune.measure.gradients import GradientGrams
from gpprune.prune.measure.hessians import InputGrams
from gpprune.prune.model.streamed.shelf import Shelf

TOKENS = torch.arange(48).view(2, 24)


def llama(blocks: int) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("blocks", [2, 6])
def test_one_blocks_sums_are_in_memory_however_many_there_are(blocks: int) -> None:
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    def count() -> None:
        nonlocal most
        gc.collect()
        most = max(most, sum(len(accumulator.layers) for accumulator in alive))

    class Back(GradientGrams):
        def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
            super().__init__(layers)
            alive.add(self)
            count()

    class Ahead(InputGrams):
        def __init__(self, layers: Mapping[str, LinearLayer]) -> None:
            super().__init__(layers)
            alive.add(self)
            count()

    def square(held: Tensor, layer: LinearLayer, extent: Any) -> Tensor:
        return held / extent.tokens

    with (
        STATISTICS.including(Statistic("P", None, ""), Statistic("Q", None, "")),
        MEASURERS.including(
            Measurer("P", Back, "", square, anew=False), Measurer("Q", Ahead, "", square)
        ),
    ):
        found = calibrate(llama(blocks), TOKENS, ["P", "Q"])
    assert len(found) == 7 * blocks
    assert most == 7


def test_layers_that_share_a_matrix_are_handed_one_object() -> None:
    found = calibrate(llama(2), TOKENS, ["aaT", "ggT"])
    attention = [found[f"model.layers.1.self_attn.{n}_proj"] for n in "qkv"]
    query, key, value = (statistics["aaT"] for statistics in attention)
    assert query is key is value
    assert attention[0]["ggT"] is not attention[1]["ggT"]
    mlp = [found[f"model.layers.0.mlp.{n}_proj"]["aaT"] for n in ("gate", "up", "down")]
    assert mlp[0] is mlp[1] is not mlp[2]


def test_states_wait_on_disk_for_the_way_back(folder: Path) -> None:
    most = 0

    def progress(label: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, len(list(folder.rglob("*.safetensors"))))

    calibrate(llama(3), TOKENS, ["G", "Gk"], progress=progress)
    assert most == 3 * len(TOKENS)
    assert not list(folder.iterdir())


def test_files_go_with_what_was_measured(folder: Path) -> None:
    found = calibrate(llama(2), TOKENS, ["aaT", "ggT"])
    assert len(list(folder.iterdir())) == 1
    one = found.pop("model.layers.0.self_attn.q_proj")
    del found
    gc.collect()
    assert one["aaT"].shape == (16, 16)
    del one
    gc.collect()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("after", [1, 5, 9, 14, 17])
def test_an_interrupt_leaves_no_file(after: int, folder: Path) -> None:
    calls = 0

    def progress(label: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(llama(4), TOKENS, ["aaT", "ggT"], progress=progress)
    assert not list(folder.iterdir())


def test_the_end_of_the_process_leaves_no_file(folder: Path) -> None:
    code = (
        "import torch; from gpprune.prune.model.streamed.shelf import Shelf; s = Shelf();"
        "s.put(1, torch.ones(3)); import os; assert os.listdir(os.environ['TMPDIR'])"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)}, check=True
    )
    assert not list(folder.iterdir())


def test_what_a_killed_process_leaves_goes_with_the_next_one(folder: Path) -> None:
    code = (
        "import torch; from gpprune.prune.model.streamed.shelf import Shelf; s = Shelf();"
        "s.put(1, torch.ones(3)); print('kept', flush=True); input()"
    )
    environment = {**os.environ, "TMPDIR": str(folder)}

    def started() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        assert child.stdout is not None and child.stdout.readline() == "kept\n"
        return child

    killed = started()
    (left,) = folder.iterdir()
    living = started()
    assert len(list(folder.iterdir())) == 2  # what is in use stays
    killed.kill()
    killed.communicate()
    other = started()
    assert left not in folder.iterdir()
    assert len(list(folder.iterdir())) == 2
    for child in (living, other):
        child.communicate("\n")
    assert not list(folder.iterdir())


def test_a_directory_that_cannot_be_written_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = folder / "missing"
    monkeypatch.setattr(tempfile, "tempdir", str(missing))
    with pytest.raises(GppruneError, match=f"{missing} cannot hold.*TMPDIR"):
        calibrate(llama(1), TOKENS, ["aaT"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shelf_gives_back_what_it_was_given(dtype: torch.dtype) -> None:
    tensors = [torch.randn(4, 3).to(dtype).t() for _ in range(4)]
    with Shelf() as shelf:
        for key, tensor in enumerate(tensors):
            shelf.put(key, tensor)
        for key, tensor in enumerate(tensors):
            assert torch.equal(shelf.get(key), tensor) and torch.equal(shelf.take(key), tensor)
            with pytest.raises(KeyError):
                shelf.get(key)
