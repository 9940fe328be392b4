"""Calibration on images in text: rows that a model's own processor makes tokens of."""

from __future__ import annotations

import hashlib
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
    rows: Sequence[ImageRow], loaded: Loaded, count: int, length: int, seed: int, *, once: bool
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Sequences of whole rows in random order, each filled up with rows without their images.

    Args:
        rows: at least one.
        loaded: a model with a processor beside its tokenizer.
        count: how many sequences.
        length: tokens a sequence.
        seed: of the order.
        once: whether a row may be in one sequence alone, as where a model is judged.

    Returns:
        ``[count, length]``, int64, and what the model takes beside each sequence's tokens, see
        `gpprune.prune.show_images`.

    Raises:
        UsageError: the model reads no images, a row is longer than a sequence, or there are too
            few rows.
        GppruneError: an image cannot be read.
    """
    process, order = _processor(loaded), _order(rows, seed, once)
    plain = [_ids(loaded.tokenizer, each.text.replace(PLACE, "")) for each in rows]
    sequences, shown = [], []
    row = next(order, None)
    for place in range(count):
        parts: list[tuple[Tensor, dict[str, Tensor]]] = []
        while row is not None:
            part = process(row)
            if len(part[0]) > length:
                raise UsageError(
                    f"{row.text[:40]!r} has {len(part[0])} tokens with its image, more than a "
                    f"sequence of {length}: give --window-length {len(part[0])} or more"
                )
            if sum(len(ids) for ids, _ in parts) + len(part[0]) > length:
                break
            parts.append(part)
            row = next(order, None)
        if not parts:
            raise UsageError(
                f"{len(rows)} rows with images fill {place} of {count} windows of {length} tokens: "
                "give more rows, or fewer or shorter windows"
            )
        filling = [*plain[place % len(plain) :], *plain[: place % len(plain)]]
        filling *= 1 + length // max(1, sum(map(len, plain)))
        sequences.append(torch.cat([*(ids for ids, _ in parts), *filling])[:length])
        shown.append(_joined(parts, length))
    return torch.stack(sequences), shown


def _order(rows: Sequence[ImageRow], seed: int, once: bool) -> Iterator[ImageRow]:
    draw = random.Random(seed)
    while True:
        yield from draw.sample(rows, len(rows))
        if once:
            return


def _joined(parts: Sequence[tuple[Tensor, dict[str, Tensor]]], length: int) -> dict[str, Tensor]:
    """What a model takes beside the tokens of several rows.

    Of what has a number a token, the filling has zeros; images follow one another.

    Raises:
        UsageError: they cannot, as those of a model that cuts them in other numbers of tiles.
    """
    found = {}
    for name in parts[0][1]:
        own = [beside[name] for _, beside in parts]
        if all(value.shape == (1, len(ids)) for value, (ids, _) in zip(own, parts, strict=True)):
            whole = own[0].new_zeros(1, length)
            joined = torch.cat(own, dim=1)
            whole[:, : joined.shape[1]] = joined
            found[name] = whole
        elif len({value.shape[1:] for value in own}) == 1:
            found[name] = torch.cat(own)
        else:
            raise UsageError(
                f"the model's processor makes {name} of other shapes of other images, which do not "
                "fit in one sequence: give images of one size"
            )
    return found


def images_digest(spec: str) -> str:
    """SHA-256 over the files of images that a text has; empty: it has none."""
    if (rows := image_rows(spec)) is None:
        return ""
    found = hashlib.sha256()
    for row in rows:
        found.update(hashlib.sha256(row.image.read_bytes()).digest())
    return found.hexdigest()


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
    place = str(getattr(made, "boi_token", None) or getattr(made, "image_token", PLACE))

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
