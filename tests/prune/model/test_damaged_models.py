"""What no model can be made of is refused in one sentence, and no code in it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from gpprune.errors import GppruneError
from gpprune.prune import load_model


def _change(file: Path, **fields: object) -> None:
    """Give fields of a JSON file other values."""
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _sentence(folder: Path) -> str:
    """The one sentence that refuses a model, which names it."""
    with pytest.raises(GppruneError) as caught:
        load_model(str(folder))
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and len(text) < 600
    return text


def test_a_damaged_checkpoint_is_one_sentence(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(GppruneError, match="cannot load the model") as caught:
        load_model(str(copy))
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "null", "3", '"x"', '{"model_type": "no-such-architecture"}']
)
def test_a_damaged_configuration_is_one_sentence(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    assert "cannot load the model" in _sentence(copy)


@pytest.mark.parametrize(
    ("field", "value", "cause"),
    [
        ("num_attention_heads", 0, "zero"),
        ("num_key_value_heads", 0, "zero"),
        ("num_attention_heads", 3, "not a multiple"),
        ("hidden_size", "x", "'hidden_size' expected int"),
        ("hidden_size", None, "'hidden_size' expected int"),
        ("hidden_size", 32, "other shapes"),
        ("hidden_size", -4, "negative dimension"),
        ("hidden_act", "no-such-function", "no-such-function"),
        ("pad_token_id", 9999, "Padding_idx"),
        ("rope_parameters", [], "'rope_parameters'"),
        ("dtype", "no-such-type", "no-such-type"),
        ("quantization_config", 3, "to_dict"),
        ("auto_map", 3, "int"),
    ],
)
def test_a_wrong_field_is_one_sentence_with_the_cause(
    copy: Path, field: str, value: object, cause: str
) -> None:
    _change(copy / "config.json", **{field: value})
    text = _sentence(copy)
    assert "config.json" in text and cause in text


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_damaged_tokenizer_is_one_sentence(copy: Path, file: str, content: str) -> None:
    (copy / file).write_text(content)
    assert "in its tokenizer" in _sentence(copy)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_what_is_not_the_models_fault_is_passed_on(
    copy: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(error):
        load_model(str(copy))


@pytest.mark.parametrize("kind", ["t5", "florence2"])
def test_a_model_that_is_no_causal_language_model_is_named(copy: Path, kind: str) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": kind}))
    assert f"'{kind}'" in _sentence(copy)


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "'model.layers.1.mlp.up_proj.weight'" in _sentence(copy)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    _change(copy / "config.json", vocab_size=100)
    text = _sentence(copy)
    assert "tokenizer" in text and "100 rows" in text


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_beyond_the_embedding_is_refused_if_a_word_gives_it(
    copy: Path, special: bool
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(copy)
    tokenizer.add_tokens([AddedToken(f"river{number}", special=special) for number in range(600)])
    tokenizer.save_pretrained(copy)
    if special:  # as Gemma 3's <image_soft_token>: only who spells it out gets it
        load_model(str(copy))
    else:
        assert "512 rows" in _sentence(copy)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(GppruneError, match="safetensors"):
        load_model(str(copy))


def test_a_model_without_linear_layers_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    outside = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    save_file(outside, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GppruneError, match="nothing to prune"):
        load_model(str(copy))


def _load_saying_yes(folder: Path, *models: Path) -> list[str]:
    """What loading each model prints in a process whose user answers every question with yes."""
    code = (
        "import sys\n"
        "from gpprune.errors import GppruneError\n"
        "from gpprune.prune import load_model\n"
        "for folder in sys.argv[1:]:\n"
        "    try:\n        print('loaded', type(load_model(folder).model).__name__)\n"
        "    except GppruneError as error:\n        print('refused', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, models)],
        input="y\n" * 9,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.splitlines()


def test_code_that_a_checkpoint_brings_is_not_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copy / "brought.py").write_text(f"open({str(mark)!r}, 'w')\nclass Brought: pass\n")
    known, unknown, tokenizer = (tmp_path / name for name in ("known", "unknown", "tokenizer"))
    for folder in (known, unknown, tokenizer):
        shutil.copytree(copy, folder)
    brought = {"AutoConfig": "brought.Brought", "AutoModelForCausalLM": "brought.Brought"}
    _change(known / "config.json", auto_map=brought)
    _change(unknown / "config.json", auto_map=brought, model_type="brought")
    _change(
        tokenizer / "tokenizer_config.json",
        tokenizer_class="Brought",
        auto_map={"AutoTokenizer": ["brought.Brought", "brought.Brought"]},
    )
    said = _load_saying_yes(tmp_path / "modules", known, unknown, tokenizer)
    assert said[0] == "loaded LlamaForCausalLM"
    for folder, line in zip((unknown, tokenizer), said[1:], strict=True):
        assert line.startswith(f"refused cannot load the model '{folder}'")
        assert "never runs" in line and "trust_remote_code" not in line
    assert not mark.exists()
