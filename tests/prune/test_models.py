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
from tiny_families import tiny
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from gpprune.compile import cache_folder
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    MODEL_SOURCES,
    ModelSource,
    blocks,
    load_model,
    model_digest,
    tokenizer_digest,
)


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


@pytest.fixture
def copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in tiny_model_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_directory_is_loaded_ready_to_evaluate(tiny_model_dir: Path) -> None:
    loaded = load_model(str(tiny_model_dir))
    assert loaded.name == str(tiny_model_dir)
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    text = "The green river flows"
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_the_dtype_is_the_one_asked_for(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_relative_directory_is_found(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    assert load_model(tiny_model_dir.name).name == tiny_model_dir.name


def test_progress_ends_where_it_should(tiny_model_dir: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    load_model(str(tiny_model_dir), progress=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2]


@pytest.mark.parametrize(
    "spec",
    ["", "./absent", "../absent", "~/absent-model", "/absent/model", "a/b/c", "a b", "~nobody-x/m"],
)
def test_a_missing_directory_is_named(spec: str) -> None:
    with pytest.raises(UsageError, match="there is no model directory") as caught:
        load_model(spec)
    assert repr(spec) in str(caught.value)


def test_a_path_below_a_directory_is_no_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'runs/pruned'"):
        load_model("runs/pruned")


def test_a_directory_without_a_model_and_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file"):
        load_model(str(tmp_path / "weights.bin"))


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


@pytest.mark.parametrize("kind", ["t5", "llava"])
def test_a_model_that_is_no_causal_language_model_is_named(copy: Path, kind: str) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": kind}))
    assert f"'{kind}'" in _sentence(copy)


def test_a_checkpoint_that_lacks_weights_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert "'model.layers.1.mlp.up_proj.weight'" in _sentence(copy)


def _save_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerFast, *extra: AddedToken) -> None:
    larger = PreTrainedTokenizerFast.from_pretrained(folder)
    larger.add_tokens(list(extra))
    larger.save_pretrained(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    _change(copy / "config.json", vocab_size=100)
    text = _sentence(copy)
    assert "tokenizer" in text and "100 rows" in text


@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_beyond_the_embedding_is_refused_if_a_word_gives_it(
    copy: Path, tiny_tokenizer: PreTrainedTokenizerFast, special: bool
) -> None:
    tokens = [AddedToken(f"river{number}", special=special) for number in range(600)]
    _save_tokenizer(copy, tiny_tokenizer, *tokens)
    if special:  # as Gemma 3's <image_soft_token>: only who spells it out gets it
        load_model(str(copy))
    else:
        assert "512 rows" in _sentence(copy)


def test_pickled_weights_are_not_read(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(GppruneError, match="safetensors"):
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


def test_a_hub_id_that_was_never_fetched_is_named_at_once_when_offline(tmp_path: Path) -> None:
    # A process of its own: the hub's client reads its environment when it is imported.
    code = (
        "from gpprune.errors import GppruneError\n"
        "from gpprune.prune import load_model\n"
        "try:\n    load_model('no-such-org/no-such-model')\n"
        "except GppruneError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("GppruneError the model 'no-such-org/no-such-model'")
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_a_model_without_linear_layers_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["num_hidden_layers"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "model.safetensors")
    outside = {name: tensor for name, tensor in tensors.items() if ".layers." not in name}
    save_file(outside, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(GppruneError, match="nothing to prune"):
        load_model(str(copy))


def test_a_language_model_beside_a_deeper_vision_tower_is_found(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny("gemma3")
    model.resize_token_embeddings(512)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert blocks(loaded.model) is loaded.model.get_decoder().layers


def test_a_source_that_is_added_serves_at_once(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grown").mkdir()  # a name comes before a directory of that name
    named = ModelSource("grown", lambda spec, progress: str(tiny_model_dir))
    prefixed = ModelSource(
        "mine",
        lambda spec, progress: str(tiny_model_dir.parent / spec.removeprefix("mine:")),
        takes=lambda spec: spec.startswith("mine:"),
        about="mine:NAME",
    )
    with MODEL_SOURCES.including(named, prefixed):
        assert load_model("grown").name == "grown"
        assert load_model("mine:tiny-llama").name == "mine:tiny-llama"
        with pytest.raises(UsageError, match=r"a hub id .*smollm2, grown or mine:NAME$"):
            load_model("./absent")
    with pytest.raises(UsageError, match="holds no model"):
        load_model("grown")


def test_a_model_that_no_source_takes_is_named() -> None:
    hub = MODEL_SOURCES.remove("hub")
    try:
        with pytest.raises(UsageError, match=r"no model 'org/name'.*an existing directory"):
            load_model("org/name")
    finally:
        others = [MODEL_SOURCES.remove(name) for name in list(MODEL_SOURCES)]
        for source in (hub, *others):  # the hub is the first, and asked last
            MODEL_SOURCES.add(source)


def test_a_digest_tells_models_apart(copy: Path) -> None:
    loaded = load_model(str(copy))
    digest = model_digest(loaded)
    assert model_digest(load_model(str(copy))) == digest and len(digest) == 64
    others = {model_digest(load_model(str(copy), dtype=torch.bfloat16))}
    weight = loaded.model.get_parameter("model.layers.1.mlp.up_proj.weight")
    with torch.no_grad():
        weight[3, 5] = -weight[3, 5]
        others.add(model_digest(loaded))
        weight[3, 5] = -weight[3, 5]
        assert model_digest(loaded) == digest
        swapped = weight.data.t().contiguous().view(weight.shape)  # the same bytes elsewhere
        weight.data = swapped
        others.add(model_digest(loaded))
    assert len(others | {digest}) == 4


def test_a_digest_reads_what_a_transposed_view_shows(tiny_gpt2_dir: Path) -> None:
    loaded = load_model(str(tiny_gpt2_dir))
    digest = model_digest(loaded)
    weight = loaded.model.get_parameter("transformer.h.0.mlp.c_fc.weight")
    weight.data = weight.data.t().contiguous().t()
    assert model_digest(loaded) == digest


def test_a_digest_tells_tokenizers_apart(copy: Path) -> None:
    tokenizer = load_model(str(copy)).tokenizer
    digest = tokenizer_digest(tokenizer)
    tokenizer("a long text that is cut", truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == digest  # how it was called last is no part of it
    assert tokenizer_digest(load_model(str(copy)).tokenizer) == digest and len(digest) == 64
    tokenizer.add_tokens(["river-valley"])
    assert tokenizer_digest(tokenizer) != digest


class _Plain:
    """A tokenizer without a backend that can be written as JSON."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self._words)}


def test_a_tokenizer_without_a_backend_has_a_digest() -> None:
    assert tokenizer_digest(_Plain(["a", "b"])) == tokenizer_digest(_Plain(["a", "b"]))
    assert tokenizer_digest(_Plain(["a", "b"])) != tokenizer_digest(_Plain(["b", "a"]))


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPPRUNE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("GPPRUNE_CACHE")
    assert cache_folder().name == "gpprune"
