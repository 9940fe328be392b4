"""Calibration on images in text: rows that a model's own processor makes tokens of."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.errors import GppruneError, UsageError
from gpprune.files import expanded
from gpprune.prune import Loaded, locate

PLACE = "<image>"
_ROW = '{"text": "<image> What is this?", "image": "one.png"}'
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class ImageRow:
    """A text with an image in it.

    Attributes:
        text: with `PLACE` where the image is.
        image: its file.
    """

    text: str
    image: Path


def image_rows(spec: str) -> list[ImageRow] | None:
    """The rows of a file of JSON lines with a field ``image``; None: it is no such file.

    Args:
        spec: what the text is called; the images' paths are relative to the file.

    Raises:
        UsageError: some rows have an image and some have none, or one is not there.
    """
    path = Path(os.path.expanduser(spec))
    if path.suffix != ".jsonl" or not path.is_file():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except ValueError:
        return None  # reading it as text says what is wrong
    if not any(isinstance(row, dict) and "image" in row for row in rows):
        return None
    found = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(name), str) for name in ("text", "image")
        ):
            raise UsageError(f"row {number} of {spec!r} is not like the others, {_ROW}: mend it")
        file = path.parent / row["image"]
        if not file.is_file():
            raise UsageError(f"row {number} of {spec!r} names {str(file)!r}, which is not there")
        text = row["text"] if PLACE in row["text"] else f"{PLACE}\n{row['text']}"
        if text.count(PLACE) > 1:
            raise UsageError(f"row {number} of {spec!r} has {PLACE} more than once: give one image")
        found.append(ImageRow(text, file))
    return found


def image_samples(
    rows: Sequence[ImageRow], loaded: Loaded, count: int, length: int, seed: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Sequences of whole rows in random order, each filled up with rows without their images.

    Args:
        rows: at least one.
        loaded: a model with a processor beside its tokenizer.
        count: how many sequences.
        length: tokens a sequence.
        seed: of the order.

    Returns:
        ``[count, length]``, int64, and what the model takes beside each sequence's tokens, see
        `gpprune.prune.show_images`.

    Raises:
        UsageError: the model reads no images, or a row is longer than a sequence.
        GppruneError: an image cannot be read.
    """
    process, draw = _processor(loaded), random.Random(seed)

    def shuffled() -> Iterator[ImageRow]:
        while True:
            yield from draw.sample(rows, len(rows))

    source, sequences, shown = shuffled(), [], []
    row = next(source)
    for _ in range(count):
        tokens, parts = torch.empty(0, dtype=torch.int64), list[dict[str, Tensor]]()
        while True:
            ids, beside = process(row)
            if len(ids) > length:
                raise UsageError(
                    f"{row.text[:40]!r} has {len(ids)} tokens with its image, more than a sequence "
                    f"of {length}: give --window-length {len(ids)} or more"
                )
            if len(tokens) + len(ids) > length:
                break
            tokens, parts = torch.cat([tokens, ids]), [*parts, beside]
            row = next(source)
        plain = [_ids(loaded.tokenizer, each.text.replace(PLACE, "")) for each in rows]
        filling = torch.cat(plain * (1 + length // max(1, sum(map(len, plain)))))
        sequences.append(torch.cat([tokens, filling])[:length])
        shown.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return torch.stack(sequences), shown


def _ids(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)


def _processor(loaded: Loaded) -> Any:
    """From a row to its tokens, and to what the model takes beside them."""
    from transformers import AutoProcessor

    if not loaded.stored.beside:
        raise UsageError(
            f"the model {loaded.name!r} has nothing that makes tokens of images: calibrate it on "
            "text alone"
        )
    try:
        made: Any = AutoProcessor.from_pretrained(
            str(expanded(locate(loaded.name))), trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever a configuration leads to
        raise GppruneError(
            f"the processor of the model {loaded.name!r} cannot be read ({error})"
        ) from error
    place = getattr(made, "image_token", PLACE)

    def process(row: ImageRow) -> tuple[Tensor, dict[str, Tensor]]:
        from PIL import Image

        try:
            with Image.open(row.image) as image:
                found = made(
                    text=row.text.replace(PLACE, place),
                    images=image.convert("RGB"),
                    return_tensors="pt",
                )
        except (OSError, ValueError) as error:
            raise GppruneError(f"the image {str(row.image)!r} cannot be read ({error})") from error
        beside = {name: value for name, value in found.items() if name not in _OF_TEXT}
        return found["input_ids"][0], beside

    return process
