"""How a checkpoint is stored, so that what is written of its model is stored likewise."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from gpprune.errors import GppruneError

DTYPES = {dtype: getattr(torch, dtype) for dtype in ("float32", "bfloat16", "float16")}
"""What a checkpoint can be written in, by name."""

BESIDE = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""What a model that reads images has beside its tokenizer."""

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}  # as safetensors calls them


@dataclass(frozen=True)
class Stored:
    """How a checkpoint is stored.

    Attributes:
        dtypes: of its parameters and buffers of floating point by name.
        shard: how many bytes its largest file of weights has, if it has several.
        beside: files that say how images become tokens, by name.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shard: int | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, source: str, *, kept_only: bool) -> Stored:
        """How a checkpoint that a model was read from is stored.

        Where the model has a parameter under another name than the file, as experts that it holds
        together, it is the dtype that most weights of the file have.

        Args:
            model: read from it, in any dtype.
            source: a directory or a hub id.
            kept_only: whether to fetch nothing.
        """
        files, several = _files(source, kept_only)
        held: dict[str, torch.dtype] = {}
        sizes: Counter[torch.dtype] = Counter()
        for path in files:
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    if (dtype := _FLOATS.get(part.get_dtype())) is not None:
                        held[name] = dtype
                        sizes[dtype] += math.prod(part.get_shape())
        beside = _beside(source, kept_only)
        if not sizes:
            return cls(beside=beside)
        most, buffers = sizes.most_common(1)[0][0], {n for n, _ in model.named_buffers()}
        dtypes = {
            name: held.get(name, values.dtype if name in buffers else most)
            for name, values in _floating(model)
        }
        return cls(dtypes, max(map(os.path.getsize, files)) if several else None, beside)

    def become(self, model: nn.Module, dtype: torch.dtype) -> Stored:
        """The same with all parameters of a model in one dtype."""
        floating = [name for name, values in model.named_parameters() if values.is_floating_point()]
        dtypes = {**self.dtypes, **dict.fromkeys(floating, dtype)}
        return Stored(dtypes, self.shard, self.beside)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let a model have these dtypes inside this context, and its own ones again afterwards.

        What a smaller dtype rounds stays rounded. What is not named here keeps its dtype.
        """
        before = {name: values.dtype for name, values in _floating(model)}
        _cast(model, self.dtypes)
        try:
            yield
        finally:
            _cast(model, before)


def _cast(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give parameters and buffers of floating point the dtypes that are named, in place."""
    for name, values in _floating(model):
        values.data = values.data.to(dtypes.get(name, values.dtype))


def check_finite(model: nn.Module) -> None:
    """See that no parameter of a model is NaN or infinite, as a cast may make one.

    Raises:
        GppruneError: naming the first that is.
    """
    for name, values in _floating(model):
        check_number(name, values)


def check_number(name: str, values: Tensor) -> None:
    """As `check_finite`, of one parameter."""
    if not bool(values.isfinite().all()):
        raise GppruneError(
            f"{name!r} holds NaN or infinity as {str(values.dtype).removeprefix('torch.')}: "
            "its numbers overflow; write it in bfloat16 or float32"
        )


def opened(path: str | Path) -> AbstractContextManager[Any]:
    """Open safetensors to read some of them: memory is taken of those alone.

    As it is opened, there must be addresses for all of the file.
    """
    return safe_open(path, "pt", backend="pread")  # type: ignore[no-any-return, unused-ignore]


def files_of(source: str, kept_only: bool) -> list[str]:
    """The safetensors of a checkpoint that has been read; see `Stored.of`."""
    return _files(source, kept_only)[0]


def _files(source: str, kept_only: bool) -> tuple[list[str], bool]:
    """The safetensors of a checkpoint that has been read, and whether an index names them."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    if (single := _find(source, SAFE_WEIGHTS_NAME, kept_only)) is not None:  # transformers' way
        return [single], False
    if (index := _find(source, SAFE_WEIGHTS_INDEX_NAME, kept_only)) is None:
        return [], False
    with open(index, encoding="utf-8") as file:
        names = sorted(set(json.load(file)["weight_map"].values()))
    return [os.path.join(os.path.dirname(index), name) for name in names], True


def _find(source: str, name: str, kept_only: bool) -> Any:
    """The path of a checkpoint's file; None: it has none of that name."""
    from transformers.utils import cached_file

    return cached_file(
        source,
        name,
        local_files_only=kept_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _beside(source: str, kept_only: bool) -> dict[str, bytes]:
    found = ((name, _find(source, name, kept_only)) for name in BESIDE)
    return {name: Path(path).read_bytes() for name, path in found if path is not None}


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        if values.is_floating_point():
            yield name, values
