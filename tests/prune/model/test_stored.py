"""A pruned checkpoint is stored as the one that it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from short_texts import short_texts
from tiny_families import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from gpprune.discover import inspect_checkpoint, prune_to
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import Recipe, Stored, load_model

TEXTS = short_texts(calibration_samples=2, window_length=32)
RECIPE = Recipe(metric="magnitude", sparsity=0.5)


def _checkpoint(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    dtype: torch.dtype,
    family: str = "llama",
    **options: str,
) -> Path:
    model = tiny(family)
    model.resize_token_embeddings(512)  # type: ignore[operator]
    model.generation_config.temperature = 0.25  # type: ignore[union-attr]
    model.generation_config.do_sample = True  # type: ignore[union-attr]
    model.to(dtype).save_pretrained(folder, **options)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


def _held(folder: Path) -> dict[str, torch.Tensor]:
    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return held


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_stay(
    dtype: torch.dtype, family: str, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, dtype, family)
    report = prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
    before, after = _held(source), _held(tmp_path / "out")
    assert {name: (v.dtype, v.shape) for name, v in after.items()} == {
        name: (v.dtype, v.shape) for name, v in before.items()
    }
    kept = {name: value != 0 for name, value in after.items()}
    assert all(torch.equal(after[name][stays], before[name][stays]) for name, stays in kept.items())
    assert report.block_sparsity == 0.5
    record = json.loads((tmp_path / "out" / "gpprune_recipe.json").read_text())
    assert record["source_sha256"] == inspect_checkpoint(str(source)).digest
    assert not inspect_checkpoint(str(tmp_path / "out")).faults


def test_shards_stay_as_small_as_they_were(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32, max_shard_size="40KB")
    prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
    sizes = [
        [p.stat().st_size for p in folder.glob("*.safetensors")]
        for folder in (source, tmp_path / "out")
    ]
    assert len(sizes[0]) == len(sizes[1]) > 1
    assert max(sizes[1]) <= 1.1 * max(sizes[0])


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_settings_and_the_chat_template_stay(
    tied: bool, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(
        tmp_path / "in", tiny_tokenizer, torch.bfloat16, "gpt2" if tied else "llama"
    )
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(source)
    prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
    names = set(_held(tmp_path / "out"))
    assert ("lm_head.weight" in names) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.temperature == 0.25
    assert loaded.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tokenizer.chat_template


def test_another_dtype_may_be_asked_for(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32)
    prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS, dtype="bfloat16")
    assert {value.dtype for value in _held(tmp_path / "out").values()} == {torch.bfloat16}
    assert not inspect_checkpoint(str(tmp_path / "out")).faults
    with pytest.raises(UsageError, match="there is no dtype 'int8'"):
        prune_to(tmp_path / "other", RECIPE, model=str(source), texts=TEXTS, dtype="int8")


def test_what_rounds_to_zero_is_counted(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32)
    model = AutoModelForCausalLM.from_pretrained(source)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[:, 0] = 1e-12
        model.model.layers[0].mlp.up_proj.weight[:, 1] = 100.0
    model.save_pretrained(source)
    recipe = Recipe(metric="magnitude", sparsity=0.0)
    report = prune_to(tmp_path / "out", recipe, model=str(source), texts=TEXTS, dtype="float16")
    assert report.zeros == 24
    assert not inspect_checkpoint(str(tmp_path / "out")).faults


def test_a_model_is_in_its_own_dtypes_again_afterwards() -> None:
    model = tiny("llama").double()
    stored = Stored({"model.norm.weight": torch.bfloat16})
    with stored.applied(model):
        assert model.get_parameter("model.norm.weight").dtype == torch.bfloat16
        assert model.get_parameter("lm_head.weight").dtype == torch.float64
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_each_weight_keeps_its_own_dtype_and_every_digit(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """The configuration names one dtype; the file may have others."""
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.bfloat16)
    held = _held(source)
    held["model.norm.weight"] = torch.full((16,), 1.001)
    save_file(held, source / "model.safetensors", {"format": "pt"})
    loaded = load_model(str(source))
    assert torch.equal(loaded.model.get_parameter("model.norm.weight"), held["model.norm.weight"])
    assert loaded.stored.dtypes["model.norm.weight"] == torch.float32
    prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
    after = _held(tmp_path / "out")
    assert torch.equal(after["model.norm.weight"], held["model.norm.weight"])
    assert after["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_number_too_large_for_the_dtype_is_refused(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32)
    held = _held(source)
    held["model.norm.weight"][3] = 1e5
    save_file(held, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(GppruneError, match=r"'model.norm.weight' holds NaN or infinity as float16"):
        prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS, dtype="float16")
    assert not (tmp_path / "out").exists()


def test_only_shards_count(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32, max_shard_size="40KB")
    wanted = load_model(str(source)).stored.shard
    save_file({"x": torch.zeros(10**6)}, source / "consolidated.safetensors")
    assert load_model(str(source)).stored.shard == wanted


@pytest.mark.parametrize("every", [0, 1])
def test_a_model_that_changes_its_own_weights_is_refused(
    every: int, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = _checkpoint(tmp_path / "in", tiny_tokenizer, torch.float32, "rwkv")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rescale_every": every}))
    if every:
        with pytest.raises(GppruneError, match="set rescale_every to 0"):
            prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
        return
    prune_to(tmp_path / "out", RECIPE, model=str(source), texts=TEXTS)
    before, after = _held(source), _held(tmp_path / "out")
    assert all(torch.equal(v[v != 0], before[name][v != 0]) for name, v in after.items())
