"""A model that is streamed block by block is pruned as one in memory is, to the byte."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from short_texts import SHORT, short_texts
from tiny_families import tiny
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import gpprune.discover.checkpoints.pruned as pruned
from gpprune.discover import inspect_checkpoint, prune_to
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    NotStreamed,
    Recipe,
    blocks,
    calibrate,
    check_still,
    linear_layers,
    load_model,
    open_streamed,
)
from gpprune.prune.measure.spill import Kept
from gpprune.prune.model.streamed import room
from gpprune.prune.model.streamed.opened import Streamed
from gpprune.prune.model.streamed.pages import pages_of
from gpprune.prune.model.streamed.shelf import Row

TEXTS = short_texts(calibration_samples=3, window_length=32)
WANDA = Recipe(sparsity=0.5)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Any:
    def make(family: str, dtype: torch.dtype = torch.bfloat16, **options: str) -> str:
        model: Any = tiny(family)
        model.resize_token_embeddings(512)
        model.to(dtype).save_pretrained(tmp_path / family, **options)
        tiny_tokenizer.save_pretrained(tmp_path / family)
        return str(tmp_path / family)

    return make


def _same_files(one: Path, other: Path) -> None:
    """All files have the same bytes, and the records say the same but for times."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.iterdir():
        if path.name == "gpprune_recipe.json":
            records = [json.loads((folder / path.name).read_text()) for folder in (one, other)]
            for record in records:
                record["report"].pop("streamed", None)
                record["report"].pop("seconds")
            assert records[0] == records[1]
        else:
            assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def _both(tmp_path: Path, model: str, recipe: Recipe, **options: Any) -> Path:
    """Prune in memory and streamed, see that it is the same, and return a folder."""
    for name, stream in (("memory", False), ("streamed", True)):
        prune_to(tmp_path / name, recipe, model=model, texts=TEXTS, stream=stream, **options)
    _same_files(tmp_path / "memory", tmp_path / "streamed")
    assert not (tmp_path / "streamed.blocks").exists()
    return tmp_path / "streamed"


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "opt", "mixtral", "qwen2moe", "qwen3moe", "gptoss", "deepseek", "granitemoe"],
)
def test_every_byte_is_as_in_memory(family: str, checkpoint: Any, tmp_path: Path) -> None:
    found = _both(tmp_path, checkpoint(family), WANDA)
    assert not inspect_checkpoint(str(found)).faults


@pytest.mark.parametrize(
    ("recipe", "order"),
    [
        (Recipe(metric="ria", pattern="2:4", update="sparsegpt"), "sequential"),
        (Recipe(sparsity=0.6, update="refit", pattern="layer"), "true-sequential"),
        (Recipe(metric="pruner-zero", sparsity=0.5), "sequential"),
        (Recipe(metric="kron-obd", sparsity=0.6, pattern="model", update="refit"), "dense"),
        (Recipe(sparsity=0.5, allocation="owl"), "sequential"),
        (Recipe(metric="magnitude", sparsity=0.5), "sequential"),
        (Recipe(sparsity=0.5, pattern="N:8", allocation="atp(0.2)"), "dense"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.metric} {value.pattern}",
)
def test_every_recipe_is_followed_as_in_memory(
    recipe: Recipe, order: str, checkpoint: Any, tmp_path: Path
) -> None:
    _both(tmp_path, checkpoint("llama"), recipe, order=order)


def test_statistics_as_large_as_weights_wait_on_disk(checkpoint: Any, tmp_path: Path) -> None:
    source, tokens = checkpoint("llama"), torch.randint(1, 400, (2, 16))
    streamed = open_streamed(source, tmp_path / "kept").loaded.model
    found = calibrate(streamed, tokens, ["X", "G", "F"])
    for name, wanted in calibrate(load_model(source).model, tokens, ["X", "G", "F"]).items():
        own = found[name]
        assert isinstance(own, Kept)
        assert list(own.own) == ["X"]
        assert all(torch.equal(own[statistic], wanted[statistic]) for statistic in wanted)


@pytest.mark.parametrize("rule", ["share", "dense"])
def test_idle_experts_go_by_the_same_rule(rule: str, checkpoint: Any, tmp_path: Path) -> None:
    _both(tmp_path, checkpoint("qwen3moe"), WANDA.model_copy(update={"idle_experts": rule}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("shard", ["40KB", "5GB"])
def test_files_and_dtypes_are_as_in_memory(
    dtype: str, shard: str, checkpoint: Any, tmp_path: Path
) -> None:
    source = checkpoint("llama", torch.float32, max_shard_size=shard)
    found = _both(tmp_path, source, WANDA.model_copy(update={"update": "refit"}), dtype=dtype)
    assert (len(list(found.glob("*.safetensors"))) > 1) == (shard == "40KB")
    AutoModelForCausalLM.from_pretrained(found)


def _loaded_blocks(model: nn.Module) -> int:
    return sum(not any(p.is_meta for p in block.parameters()) for block in blocks(model))


def test_one_block_is_in_memory_at_a_time(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Streamed] = []

    def opening(*given: Any, **options: Any) -> Streamed:
        opened.append(open_streamed(*given, **options))
        return opened[-1]

    counts = []

    def watching(label: str, done: int, total: int) -> None:
        if opened:
            counts.append(_loaded_blocks(opened[-1].loaded.model))

    monkeypatch.setattr(pruned, "open_streamed", opening)
    recipe = Recipe(metric="pruner-zero", sparsity=0.5, update="refit", allocation="owl")
    source = checkpoint("llama")
    prune_to(tmp_path / "out", recipe, model=source, texts=TEXTS, stream=True, progress=watching)
    assert len(counts) > 20
    assert set(counts) <= {0, 1}


@pytest.mark.parametrize(
    ("recipe", "order"),
    [
        (Recipe(metric="ria", sparsity=0.5, update="sparsegpt"), "sequential"),
        (Recipe(metric="pruner-zero", sparsity=0.5), "dense"),
    ],
)
def test_a_broken_run_goes_on_after_its_last_block(
    recipe: Recipe, order: str, checkpoint: Any, tmp_path: Path
) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    options: dict[str, Any] = {"model": source, "texts": TEXTS, "order": order}
    prune_to(tmp_path / "memory", recipe, stream=False, **options)
    layers = len(linear_layers(load_model(source).model))

    def breaking(label: str, done: int, total: int) -> None:
        # of the first block all is done, of the second something
        if label == "pruning" and done == (1 if order == "sequential" else layers // 2 + 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_to(out, recipe, stream=True, progress=breaking, **options)
    assert not out.exists()
    assert pruned.kept_beside(out)
    with pytest.raises(UsageError, match="another recipe"):
        prune_to(out, recipe.model_copy(update={"sparsity": 0.6}), stream=True, **options)
    seen = []

    def watching(label: str, done: int, total: int) -> None:
        if label == "pruning":
            seen.append(done)

    report = prune_to(out, recipe, stream=True, progress=watching, **options)
    assert seen == ([2] if order == "sequential" else list(range(layers // 2 + 1, layers + 1)))
    assert report.streamed is not None
    assert len(report.streamed) == 1
    _same_files(tmp_path / "memory", out)
    assert not (tmp_path / "out.blocks").exists()


def test_a_killed_process_goes_on(checkpoint: Any, tmp_path: Path) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    prune_to(tmp_path / "memory", WANDA, model=source, texts=TEXTS, stream=False)
    code = (
        "import os, signal, sys\n"
        "from gpprune.discover import Texts, prune_to\n"
        "from gpprune.prune import Recipe\n"
        "def killing(label, done, total):\n"
        "    if label == 'pruning':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "prune_to(sys.argv[1], Recipe(sparsity=0.5), model=sys.argv[2], stream=True,\n"
        f"         texts=Texts({SHORT!r}, {SHORT!r}, calibration_samples=3, window_length=32),\n"
        "         progress=killing)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(out), source], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not out.exists()
    prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)
    _same_files(tmp_path / "memory", out)


class _Stop(Exception):
    pass


def _stopped(
    out: Path, source: str, recipe: Recipe = WANDA, blocks: int = 1, **options: Any
) -> Path:
    """Break a streamed run off when so many blocks are done, and return where it is kept."""

    def stopping(label: str, done: int, total: int) -> None:
        if label == "pruning" and done == blocks:
            raise _Stop

    with pytest.raises(_Stop):
        prune_to(out, recipe, model=source, texts=TEXTS, stream=True, progress=stopping, **options)
    return out.parent / f"{out.name}.blocks"


def test_what_has_begun_streamed_goes_on_so(checkpoint: Any, tmp_path: Path) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    kept = _stopped(out, source)
    report = prune_to(out, WANDA, model=source, texts=TEXTS)  # memory is enough
    assert report.streamed is not None
    assert len(report.streamed) == 1
    assert not kept.exists()
    kept = _stopped(tmp_path / "again", source)
    assert prune_to(tmp_path / "again", WANDA, model=source, texts=TEXTS, stream=False)
    assert not kept.exists()


@pytest.mark.parametrize("what", ["cut", "missing", "more", "state"])
def test_kept_blocks_that_are_damaged_are_said(what: str, checkpoint: Any, tmp_path: Path) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    kept = _stopped(out, source)
    weights = kept / "checkpoint" / "model.safetensors"
    if what == "cut":
        weights.write_bytes(weights.read_bytes()[:-8])
    elif what == "missing":
        weights.unlink()
    elif what == "more":
        (weights.parent / "model-00001-of-00002.safetensors").write_bytes(b"")
    else:
        (kept / "states-1" / "1.safetensors").unlink()
    with pytest.raises(GppruneError, match=r"are damaged.*remove it"):
        prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)
    assert not out.exists()


def test_a_checkpoint_that_was_taken_away_is_begun_anew(checkpoint: Any, tmp_path: Path) -> None:
    """As after a kill between the checkpoint's last name and the end of what is kept."""
    source, out = checkpoint("llama"), tmp_path / "out"
    prune_to(tmp_path / "memory", WANDA, model=source, texts=TEXTS, stream=False)
    shutil.rmtree(_stopped(out, source) / "checkpoint")
    prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)
    _same_files(tmp_path / "memory", out)


@pytest.mark.parametrize("change", ["dtype", "model"])
def test_files_of_a_run_without_blocks_are_not_gone_on_with(
    change: str, checkpoint: Any, tmp_path: Path
) -> None:
    other = checkpoint("gpt2") if change == "model" else checkpoint("llama")
    source, out = checkpoint("llama"), tmp_path / "out"
    code = (
        "import os, signal, sys\n"
        "from gpprune.discover import Texts, prune_to\n"
        "from gpprune.prune import Recipe\n"
        "def killing(label, done, total):\n"
        "    if label == 'reading the calibration text':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "prune_to(sys.argv[1], Recipe(sparsity=0.5), model=sys.argv[2], stream=True,\n"
        f"         texts=Texts({SHORT!r}, {SHORT!r}, calibration_samples=3, window_length=32),\n"
        "         progress=killing,\n"
        "         dtype='float32')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(out), other], check=False)
    assert (tmp_path / "out.blocks" / "checkpoint" / "model.safetensors").exists()
    assert pruned.kept_beside(out) is None
    prune_to(tmp_path / "memory", WANDA, model=source, texts=TEXTS, stream=False)
    prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)
    _same_files(tmp_path / "memory", out)


def test_one_process_at_a_time_writes(checkpoint: Any, tmp_path: Path) -> None:
    source, out, refused = checkpoint("llama"), tmp_path / "out", []

    def meanwhile(label: str, done: int, total: int) -> None:
        if label == "pruning" and not refused:
            with pytest.raises(UsageError, match="another process writes") as error:
                prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)
            refused.append(error)

    prune_to(out, WANDA, model=source, texts=TEXTS, stream=True, progress=meanwhile)
    assert refused
    assert not inspect_checkpoint(str(out)).faults


def test_another_configuration_is_another_model(checkpoint: Any, tmp_path: Path) -> None:
    source, out = checkpoint("llama"), tmp_path / "out"
    _stopped(out, source)
    config = Path(source, "config.json")
    config.write_text(config.read_text().replace("1e-06", "1e-02"))
    with pytest.raises(UsageError, match="another recipe, model"):
        prune_to(out, WANDA, model=source, texts=TEXTS, stream=True)


@pytest.mark.parametrize("same", [True, False])
def test_a_head_that_is_stored_beside_the_embedding(
    same: bool, checkpoint: Any, tmp_path: Path
) -> None:
    source = checkpoint("llama", torch.float32)
    path, config = Path(source, "model.safetensors"), Path(source, "config.json")
    weights = load_file(path)
    head = weights["model.embed_tokens.weight"] * (1 if same else 2)
    save_file(weights | {"lm_head.weight": head}, path, metadata={"format": "pt"})
    stored = json.loads(config.read_text()) | {"tie_word_embeddings": True}
    config.write_text(json.dumps(stored))
    recipe = Recipe(metric="pruner-zero", sparsity=0.5)
    if same:
        _both(tmp_path, source, recipe)
        return
    with pytest.raises(NotStreamed, match="other weights where its config"):
        prune_to(tmp_path / "out", recipe, model=source, texts=TEXTS, stream=True)


def test_one_file_comes_before_an_index(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama", torch.float32, max_shard_size="40KB")
    weights = {
        n: v + 1 for p in Path(source).glob("*.safetensors") for n, v in load_file(p).items()
    }
    save_file(weights, Path(source, "model.safetensors"), metadata={"format": "pt"})
    _both(tmp_path, source, WANDA)


@pytest.mark.parametrize(
    ("family", "recipe", "said"),
    [
        ("llama", Recipe(pattern="4:7"), "4:7"),
        ("mixtral", Recipe(sparsity=0.99), "give less than"),
        ("hrm", Recipe(sparsity=0.2), "no plain chain"),
        ("rwkv", Recipe(sparsity=0.2), "no plain chain|rescale_every"),
    ],
)
def test_what_is_refused_leaves_nothing(
    family: str, recipe: Recipe, said: str, checkpoint: Any, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b" / "out"
    with pytest.raises(GppruneError, match=said):
        prune_to(out, recipe, model=checkpoint(family), texts=TEXTS, stream=True)
    assert {path.name for path in tmp_path.iterdir()} == {family}


def test_a_loaded_model_cannot_be_streamed_any_more(checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is loaded is in memory"):
        prune_to(tmp_path / "out", WANDA, model=load_model(checkpoint("llama")), stream=True)


def test_no_room_is_said(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # Python ignores the signal, so that a write fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(GppruneError, match=r"cannot be written to.*make room"):
            prune_to(tmp_path / "out", WANDA, model=source, texts=TEXTS, stream=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


def test_a_link_is_not_followed(checkpoint: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.blocks").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is something else"):
        prune_to(tmp_path / "out", WANDA, model=checkpoint("llama"), texts=TEXTS, stream=True)


def test_memory_of_a_group_of_processes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "groups" / "a" / "b"
    own.mkdir(parents=True)
    (tmp_path / "self").write_text("0::/a/b\n")
    monkeypatch.setattr(room, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(room, "_OWN_GROUP", tmp_path / "self")
    cpu = torch.device("cpu")
    plenty = room.available(cpu)
    assert plenty > 1e6
    (own / "memory.max").write_text("max\n")
    for name, value in (("max", "1000"), ("current", "990"), ("stat", "anon 3\ninactive_file 90")):
        (own.parent / f"memory.{name}").write_text(f"{value}\n")
    assert room.available(cpu) == 100
    (own.parent / "memory.current").write_text("2000")
    assert room.available(cpu) == 0


def test_what_else_lies_there_is_left_alone(checkpoint: Any, tmp_path: Path) -> None:
    kept = tmp_path / "out.blocks"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is something else"):
        prune_to(tmp_path / "out", WANDA, model=checkpoint("llama"), texts=TEXTS, stream=True)
    assert (kept / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 2}, "2 shots"),
        ({"recover": 1}, "training"),
        ({"permute": "metric", "pattern": "2:4", "sparsity": None}, "permuting"),
        ({"synthetic_samples": 2}, "synthetic samples"),
        ({"order": "corrected", "update": "refit"}, "'corrected'"),
        ({"pattern": "mlp"}, "'mlp'"),
        ({"pattern": "free", "metric": "magnitude"}, "'free'"),
        ({"allocation": "besa"}, "'besa'"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(
    changes: dict[str, Any], said: str, checkpoint: Any, tmp_path: Path
) -> None:
    recipe = Recipe.make(**{"sparsity": 0.5, **changes})
    with pytest.raises(UsageError, match=said):
        prune_to(tmp_path / "out", recipe, model=checkpoint("llama"), texts=TEXTS, stream=True)
    assert {path.name for path in tmp_path.iterdir()} == {"llama"}


def test_it_streams_by_itself_where_memory_is_short(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("llama")
    assert prune_to(tmp_path / "a", WANDA, model=source, texts=TEXTS).streamed is None
    limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with monkeypatch.context() as patched:
        # little more address space than there is taken
        taken = room.psutil.Process().memory_info().vms + 2**16
        patched.setattr(resource, "getrlimit", lambda _: (taken, limit[1]))
        assert prune_to(tmp_path / "b", WANDA, model=source, texts=TEXTS).streamed
        with pytest.raises(UsageError, match=r"GB in memory.* are free; 2 shots.*--no-stream"):
            recipe = WANDA.model_copy(update={"shots": 2})
            prune_to(tmp_path / "c", recipe, model=source, texts=TEXTS)
        assert prune_to(tmp_path / "d", WANDA, model=source, texts=TEXTS, stream=False)
    _same_files(tmp_path / "a", tmp_path / "b")


def test_damaged_weights_are_named(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama", torch.float32)
    weights = AutoModelForCausalLM.from_pretrained(source).state_dict()
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = torch.nan
    save_file(weights, Path(source, "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(GppruneError, match=r"layers\.1\.mlp\.up_proj.*holds NaN"):
        prune_to(tmp_path / "out", WANDA, model=source, texts=TEXTS, stream=True)
    assert not (tmp_path / "out").exists()


def test_numbers_that_overflow_are_refused(checkpoint: Any, tmp_path: Path) -> None:
    source = checkpoint("llama", torch.float32)
    weights = AutoModelForCausalLM.from_pretrained(source).state_dict()
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = 1e6
    save_file(weights, Path(source, "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(GppruneError, match="overflow"):
        prune_to(tmp_path / "out", WANDA, model=source, texts=TEXTS, stream=True, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_a_model_that_changes_its_weights_is_refused(checkpoint: Any, tmp_path: Path) -> None:
    streamed = open_streamed(checkpoint("rwkv"), tmp_path / "kept")
    _ = list(linear_layers(streamed.loaded.model).values())[-1].weight
    with pytest.raises(GppruneError, match="rescale_every"):
        check_still(streamed.loaded.model, torch.ones(1, 8, dtype=torch.int64))


def test_a_change_is_written_or_an_error(checkpoint: Any, tmp_path: Path) -> None:
    streamed = open_streamed(checkpoint("llama"), tmp_path / "kept")
    first, *_, last = linear_layers(streamed.loaded.model).values()
    assert first.shape == first.weight.shape
    first.weight.zero_()
    with pytest.raises(GppruneError, match="changed and not written"):
        _ = last.weight
    with pytest.raises(GppruneError, match="nowhere to write"):
        streamed.pages.finish(0)


def test_outputs_are_those_of_the_model(checkpoint: Any, tmp_path: Path) -> None:
    source, tokens = checkpoint("mixtral"), torch.randint(1, 400, (2, 16))
    streamed = open_streamed(source, tmp_path / "kept").loaded.model
    assert pages_of(streamed) is not None
    with torch.no_grad():
        wanted = load_model(source).model(tokens).logits
        assert torch.equal(streamed(tokens).logits, wanted)
    assert _loaded_blocks(streamed) == 0  # the head is in memory now


def test_states_beyond_a_gigabyte_lie_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpprune.prune.model.streamed.shelf._IN_MEMORY", 3000)
    row, given = Row(), [torch.randn(1, 16, 16) for _ in range(6)]
    for one in given:
        row.append(one)
    assert sum(held is None for held in row._held) == 3
    for place in (1, 5):
        given[place] = torch.randn(1, 16, 16)
        row[place] = given[place]
    found: list[Tensor] = list(row)
    assert len(row) == 6
    assert all(map(torch.equal, found, given))


@pytest.mark.slow
def test_under_a_limit_that_memory_does_not_hold() -> None:
    command = [sys.executable, "-m", "benchmarks.streaming", "--hidden=1536", "--inner=4096"]
    command += ["--blocks=48", "--heads=12", "--samples=2", "--length=128", "--limit=6"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = printed.splitlines()
    assert [line.split(": ")[0] for line in lines[1:]] == ["row", "2:4", "in memory"]
    for line in lines[1:3]:
        zeros, size = (int(part.replace(",", "")) for part in line.split()[1:4:2])
        assert 2 * zeros == size
        assert float(line.partition("at most ")[2].split()[0]) < 2
    assert "ended with" in lines[3]
