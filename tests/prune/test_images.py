"""A model that reads images: a tiny LLaVA, trained here to name colours, pruned and asked again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from gpprune import cli
from gpprune.discover import MetricGoal, Texts, Workbench, discover, prune_to
from gpprune.errors import GppruneError, UsageError
from gpprune.evals import image_rows
from gpprune.gp import PRESETS
from gpprune.prune import Recipe, calibrate, load_model, show_images

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "pink": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
QUESTION = "<image> What colour is this ?"
SIZE, PATCH = 16, 8


def picture(colour: str, generator: torch.Generator) -> Image.Image:
    """One colour with noise."""
    base = torch.tensor(COLOURS[colour], dtype=torch.float32)
    noisy = base + 60 * torch.randn(SIZE, SIZE, 3, generator=generator)
    return Image.fromarray(noisy.clamp(0, 255).to(torch.uint8).numpy())


@pytest.fixture(scope="module")
def processor() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<end>", "<image>", "?", "What", "colour", "is", "this", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel(dict(zip(words, range(99), strict=False)), "<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>")
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sized = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=sized, crop_size=sized),
        tokenizer=made,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def asked(processor: Any, colours: list[str], seed: int) -> dict[str, Tensor]:
    """The question with an image of each colour."""
    draw = torch.Generator().manual_seed(seed)
    images = [picture(colour, draw) for colour in colours]
    found: dict[str, Tensor] = processor(
        text=[QUESTION] * len(colours), images=images, return_tensors="pt"
    )
    return found


@pytest.fixture(scope="module")
def llava_dir(processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in some seconds; its vision tower is deeper than its language model."""
    config = LlavaConfig(
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIZE,
            "patch_size": PATCH,
            "projection_dim": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 64,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    )
    names, draw = list(COLOURS), torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = LlavaForConditionalGeneration(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        colours = names * 40
        seen = asked(processor, colours, 0)
        right = torch.tensor(processor.tokenizer.convert_tokens_to_ids(colours))
        for _ in range(150):
            chosen = torch.randint(len(colours), (24,), generator=draw)
            logits = model(**{name: value[chosen] for name, value in seen.items()}).logits[:, -1]
            loss = torch.nn.functional.cross_entropy(logits, right[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "llava"
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def accuracy(folder: Path, processor: Any) -> float:
    """Of a checkpoint in plain transformers, on 350 new images."""
    model = LlavaForConditionalGeneration.from_pretrained(folder)
    colours = list(COLOURS) * 50
    words = model(**asked(processor, colours, 99)).logits[:, -1].argmax(-1)
    right = torch.tensor(processor.tokenizer.convert_tokens_to_ids(colours))
    return float((words == right).float().mean())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows with images beside it."""
    draw, lines = torch.Generator().manual_seed(5), []
    for at, colour in enumerate(list(COLOURS) * 3):
        picture(colour, draw).save(tmp_path / f"{at}.png")
        lines.append(json.dumps({"text": f"{QUESTION} {colour}", "image": f"{at}.png"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def texts(rows: Path) -> Texts:
    return Texts(str(rows), str(rows), 2, 32, 6)


def test_images_that_could_not_be_told_apart_are_refused(
    llava_dir: Path, rows: Path, texts: Texts
) -> None:
    same = [json.dumps({"text": QUESTION, "image": f"{at}.png"}) for at in range(20)]
    rows.write_text("\n".join(same))
    with pytest.raises(UsageError, match="same words and other images"):
        Workbench(str(llava_dir), texts).calibration()


def test_no_row_is_judged_twice(llava_dir: Path, texts: Texts) -> None:
    bench = Workbench(str(llava_dir), replace(texts, windows=40))
    with pytest.raises(UsageError, match=r"11 rows with images fill \d of 40 windows"):
        bench.windows("validation")


def test_other_images_are_another_text(llava_dir: Path, texts: Texts, rows: Path) -> None:
    before = Workbench(str(llava_dir), texts).digests()
    picture("red", torch.Generator().manual_seed(77)).save(rows.parent / "3.png")
    after = Workbench(str(llava_dir), texts).digests()
    assert {name for name in before if before[name] != after[name]} == {"text", "calibration text"}


def test_the_language_model_alone_is_pruned_and_goes_on_to_answer(
    llava_dir: Path, processor: Any, texts: Texts, tmp_path: Path
) -> None:
    assert accuracy(llava_dir, processor) > 0.97
    goal = MetricGoal(texts=texts, model=str(llava_dir), dtype="float32", sparsity=0.5)
    settings = PRESETS["quick"].replaced(population=8, generations=3)
    recipe = discover(goal, settings=settings, rivals="best", winners=1).recipe
    assert recipe is not None
    report = prune_to(tmp_path / "out", recipe, model=str(llava_dir), texts=texts)
    before, after = (load_file(d / "model.safetensors") for d in (llava_dir, tmp_path / "out"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    assert all("language_model" in name and ".layers." in name for name in changed)
    zeros = sum(int((after[name] == 0).sum()) for name in changed)
    assert zeros == report.block_zeros == sum(after[name].numel() for name in changed) // 2
    again = LlavaProcessor.from_pretrained(tmp_path / "out")
    assert accuracy(tmp_path / "out", again) >= accuracy(llava_dir, processor) - 0.02


def test_statistics_are_of_images_too(llava_dir: Path, texts: Texts) -> None:
    """Against plain transformers on the same sequences with their images, in float64."""
    bench = Workbench(str(llava_dir), texts, dtype="float32")
    tokens = bench.calibration()
    found = calibrate(bench.loaded.model, tokens, ["X"])
    image = bench.loaded.model.config.image_token_index
    assert int((tokens == image).sum()) >= 4 * len(tokens)
    (shown,) = (hook.shown for hook in bench.loaded.model.base_model._forward_pre_hooks.values())
    model: Any = LlavaForConditionalGeneration.from_pretrained(llava_dir).double()
    layer = model.get_submodule("model.language_model.layers.1.mlp.gate_proj")
    squares: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, args: squares.append(args[0][0].square().sum(0)))
    with torch.no_grad():
        for sequence in tokens:
            pixels = shown[tuple(sequence.tolist())]["pixel_values"].double()
            assert len(pixels) == int((sequence == image).sum()) // 4
            model(input_ids=sequence[None], pixel_values=pixels)
    wanted = torch.stack(squares).sum(0) / tokens.numel()
    own = found["model.language_model.layers.1.mlp.gate_proj"]["X"].double()
    ratio = own.square() / wanted
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-4)
    blind = calibrate(load_model(str(llava_dir)).model, tokens, ["X"])
    other = blind["model.language_model.layers.1.mlp.gate_proj"]["X"]
    assert not torch.allclose(other, own.float(), rtol=1e-2)


@pytest.mark.parametrize("order", ["dense", "sequential", "corrected"])
def test_every_order_sees_images(
    order: str, llava_dir: Path, processor: Any, texts: Texts, tmp_path: Path
) -> None:
    update = "kron-admm" if order == "corrected" else "refit"
    recipe = Recipe(metric="kron-obd", sparsity=0.5, pattern="model", update=update)
    prune_to(tmp_path / "out", recipe, model=str(llava_dir), texts=texts, order=order)
    assert accuracy(tmp_path / "out", processor) >= accuracy(llava_dir, processor) - 0.02


def test_gradients_do_not_come_from_foretelling_images(llava_dir: Path, texts: Texts) -> None:
    """A token after an image's place counts, an image's place does not: against autograd."""
    bench = Workbench(str(llava_dir), texts, dtype="float32")
    tokens = bench.calibration()
    model: Any = bench.loaded.model
    found = calibrate(model, tokens, ["Gk"])["model.language_model.layers.1.mlp.down_proj"]["Gk"]
    layer, squares = model.get_submodule("model.language_model.layers.1.mlp.down_proj"), []

    def keep(module: Any, grads: Any, outputs: Any) -> None:
        squares.append(outputs[0][0].double().square().sum(0))

    handle = layer.register_full_backward_hook(keep)
    image = model.config.image_token_index
    for sequence in tokens:
        logits = model(input_ids=sequence[None]).logits[0, :-1]
        right = sequence[1:].masked_fill(sequence[1:] == image, -100)
        torch.nn.functional.cross_entropy(logits, right).backward()
    handle.remove()
    wanted = torch.stack(squares).sum(0)
    ratio = found.double() / wanted
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-3)


@torch.no_grad()
def test_what_is_judged_is_words_beside_images(llava_dir: Path, texts: Texts) -> None:
    """In plain transformers: the loss of all tokens that are no image's place."""
    bench = Workbench(str(llava_dir), texts, dtype="float32")
    windows = bench.windows("test")
    found = bench.dense(windows)
    model: Any = bench.judged
    (shown,) = (hook.shown for hook in bench.loaded.model.base_model._forward_pre_hooks.values())
    image, wanted = model.config.image_token_index, []
    plain: Any = LlavaForConditionalGeneration.from_pretrained(llava_dir)
    for window in windows:
        pixels = shown[tuple(window.tolist())]["pixel_values"]
        logits = plain(input_ids=window[None], pixel_values=pixels).logits[0, :-1]
        right = window[1:].masked_fill(window[1:] == image, -100)
        wanted.append(float(torch.nn.functional.cross_entropy(logits, right)))
    assert found.losses.tolist() == pytest.approx(wanted, rel=1e-4)
    other = bench.windows("validation")
    assert not {tuple(w) for w in other.tolist()} & {tuple(w) for w in windows.tolist()}


def test_one_place_holds_what_is_shown(llava_dir: Path) -> None:
    model: Any = load_model(str(llava_dir)).model
    for _ in range(3):
        show_images(model, torch.ones(1, 4, dtype=torch.int64), [{}])
    assert len(model.base_model._forward_pre_hooks) == 1


def test_rows_without_images_are_text(tmp_path: Path) -> None:
    for name, text in {"a.jsonl": '{"text": "words"}', "b.txt": "x", "c.jsonl": "{"}.items():
        (tmp_path / name).write_text(text)
        assert image_rows(str(tmp_path / name)) is None
    assert image_rows("wikitext2") is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "image": "no.png"}], "no.png', which is not there"),
        ([{"text": "a", "image": "0.png"}, {"text": "b"}], "row 2 of .* is not like the others"),
        ([{"text": "<image> <image>", "image": "0.png"}], "more than once"),
    ],
)
def test_rows_that_cannot_be_read_are_named(
    rows: list[dict[str, str]], message: str, tmp_path: Path
) -> None:
    (tmp_path / "0.png").write_bytes(b"none")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=message):
        image_rows(str(tmp_path / "rows.jsonl"))


def test_images_need_a_model_that_reads_them(
    llava_dir: Path, tiny_model_dir: Path, texts: Texts, rows: Path, capsys: Any
) -> None:
    with pytest.raises(UsageError, match="nothing that makes tokens of images"):
        Workbench(str(tiny_model_dir), texts).calibration()
    short = Texts(str(rows), str(rows), 2, 8, 6)
    with pytest.raises(UsageError, match="give --window-length 10 or more"):
        Workbench(str(llava_dir), short).calibration()
    (rows.parent / "0.png").write_bytes(b"no picture")
    with pytest.raises(GppruneError, match=r"0\.png' cannot be read"):
        Workbench(str(llava_dir), texts).calibration()
    assert cli.run(["inspect", str(llava_dir)]) == 0
    printed = capsys.readouterr().out
    assert "self_attn.q_proj" in printed and "vision" not in printed
