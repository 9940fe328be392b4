"""How a checkpoint is stored, so that what is written of its model is stored likewise."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {dtype: getattr(torch, dtype) for dtype in ("float32", "bfloat16", "float16")}
"""What a checkpoint can be written in, by name."""


@dataclass(frozen=True)
class Stored:
    """How a checkpoint is stored.

    Attributes:
        dtypes: of its parameters and buffers of floating point by name.
        shard: how many bytes its largest file of weights has, if it has several.
    """

    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    shard: int | None = None

    @classmethod
    def of(cls, model: nn.Module, shard: int | None = None) -> Stored:
        """How a model that was read in the dtypes of its checkpoint is stored there."""
        return cls({name: values.dtype for name, values in _floating(model)}, shard)

    def become(self, model: nn.Module, dtype: torch.dtype) -> Stored:
        """The same with all parameters of a model in one dtype."""
        floating = [name for name, values in model.named_parameters() if values.is_floating_point()]
        return Stored({**self.dtypes, **dict.fromkeys(floating, dtype)}, self.shard)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let a model have these dtypes inside this context, and its own ones again afterwards.

        What a smaller dtype rounds stays rounded. What is not named here keeps its dtype.
        """
        before = {name: values.dtype for name, values in _floating(model)}
        cast(model, self.dtypes)
        try:
            yield
        finally:
            cast(model, before)


def cast(model: nn.Module, dtypes: Mapping[str, torch.dtype] | torch.dtype) -> None:
    """Give a model's parameters and buffers of floating point other dtypes, in place.

    Args:
        model: any.
        dtypes: by name; or one for all.
    """
    for name, values in _floating(model):
        wanted = dtypes if isinstance(dtypes, torch.dtype) else dtypes.get(name, values.dtype)
        values.data = values.data.to(wanted)


def largest_shard(source: str, *, kept_only: bool) -> int | None:
    """How many bytes the largest of several files of weights has; None: there is but one.

    Args:
        source: a directory or a hub id that has been read.
        kept_only: whether to fetch nothing.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

    index: Any = cached_file(
        source,
        SAFE_WEIGHTS_INDEX_NAME,
        local_files_only=kept_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is None:
        return None
    with os.scandir(os.path.dirname(index)) as files:
        sizes = [file.stat().st_size for file in files if file.name.endswith(".safetensors")]
    return max(sizes, default=None)


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        if values.is_floating_point():
            yield name, values
