"""Open a checkpoint whose decoder blocks are read and written one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gpprune.errors import GppruneError
from gpprune.progress import Progress, silent
from gpprune.prune.model.load import (
    Loaded,
    Origin,
    check_complete,
    check_reader,
    check_tokenizer,
    default_device,
    read_config,
    read_tokenizer,
)
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.shapes import read_shapes
from gpprune.prune.model.sources import auto_class
from gpprune.prune.model.stored import Stored, files_of, opened
from gpprune.prune.model.streamed.finished import CHECKPOINT, Finished
from gpprune.prune.model.streamed.pages import Pages, Part, not_streamed
from gpprune.prune.model.streamed.parts import OUTSIDE, Parts
from gpprune.prune.model.streamed.room import available, needed
from gpprune.prune.model.streamed.shards import Shards
from gpprune.prune.model.structure import blocks, linear_layers


@dataclass(frozen=True, eq=False)
class Streamed:
    """A streamed model, and the files that its finished blocks go to.

    Attributes:
        loaded: the model with its tokenizer; its blocks have weights while they run or are read.
        stored: how it is written.
        pages: which those are.
        shards: the files of weights that are written, in the folder of the checkpoint to be.
        kept: the directory that holds it, and what else a killed run goes on from.
        parts: the names of the model's parts.
        device: where a part's weights come to lie.
    """

    loaded: Loaded
    stored: Stored
    pages: Pages
    shards: Shards
    kept: Path
    parts: list[str]
    device: torch.device

    def begin(self, identity: dict[str, Any]) -> None:
        """Write what lies outside the blocks, or go on after the blocks that are finished.

        Args:
            identity: what tells this pruning from others, as JSON has it.

        Raises:
            UsageError: another pruning is kept, or another process is at it.
            GppruneError: it is damaged, or there is no room.
        """
        self.pages.write_to(Finished(self.kept, identity, self.shards, self.parts, self.device))


def open_streamed(
    spec: str,
    kept: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "auto",
    progress: Progress = silent,
) -> Streamed:
    """Open a model to prune it block by block.

    All but its decoder blocks, and a head of its own, is read at once, in float32.

    Args:
        spec: see `gpprune.load_model`.
        kept: the directory of what is to be written, see `Streamed.begin`.
        dtype: what is written; None: the checkpoint's own.
        device: where a block's weights come to lie, see `gpprune.load_model`.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError, GppruneError: as of `gpprune.load_model`; or the model cannot be streamed.
    """
    progress("loading the model", 0, 1)
    origin = Origin.of(spec, progress)
    config, tokenizer = read_config(origin), read_tokenizer(origin)
    if read_shapes(origin.source) is not None:
        raise not_streamed("it has shapes of its own, as gpprune shrink leaves them")
    with origin.reading("weights"):
        files = files_of(origin.source, origin.kept_only)
    model = _skeleton(origin, config, files)
    where = default_device() if device == "auto" else torch.device(device)
    with origin.reading("weights"):
        stored = Stored.of(model, origin.source, kept_only=origin.kept_only)
        written = stored if dtype is None else stored.become(model, dtype)
        parts = _parts(model)
        names = [name for name, _ in parts]
        source = Parts(model, files, names, where)
        source.load(OUTSIDE)
        with quiet_transformers():
            missing = set(model.state_dict()) - source.names
            tied = dict(model.all_tied_weights_keys)
            model.tie_weights(missing_keys=missing, recompute_mapping=False)
        if tied != model.all_tied_weights_keys:
            raise not_streamed("it has other weights where its config.json ties them")
        shards = Shards(kept / CHECKPOINT, model, written)
    for name, buffer in list(model.named_buffers()):
        _put(model, name, buffer.to(where))
    with origin.reading("tokenizer"):
        check_tokenizer(spec, tokenizer, model)
    model.eval()
    pages = Pages(model, parts, len(blocks(model)), source)
    linear_layers(model)  # nothing to prune is an error now
    check_reader(spec, model, stored)
    progress("loading the model", 1, 1)
    loaded = Loaded(model, tokenizer, spec, stored)
    return Streamed(loaded, written, pages, shards, kept, names, where)


def _parts(model: Any) -> list[Part]:
    """The blocks, and the head if its weights are its own."""
    names = {id(module): name for name, module in model.named_modules()}
    found: list[Part] = [(names[id(block)], block) for block in blocks(model)]
    head = None
    with suppress(AttributeError, NotImplementedError):
        head = model.get_output_embeddings()
    if not isinstance(head, nn.Module) or id(head) not in names:
        return found
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    if any(f"{names[id(head)]}.{name}" in tied for name, _ in head.named_parameters()):
        return found
    own = set(map(id, head.parameters()))
    holders = {
        name.startswith(f"{names[id(head)]}.")
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in own
    }
    return [*found, (names[id(head)], head)] if holders == {True} else found


def _skeleton(origin: Origin, config: Any, files: list[str]) -> Any:
    """The model with parameters on the meta device, and the buffers that its code computes."""
    from accelerate import init_empty_weights

    with origin.reading("config.json"), init_empty_weights(include_buffers=False), _NoWeights():
        twin = auto_class(config).from_config(config, dtype=torch.float32)
    held = {}
    with origin.reading("config.json or weights"):
        for path in files:
            with opened(path) as file:
                for name in list(file.keys()):
                    shape = file.get_slice(name).get_shape()
                    held[name] = torch.empty(shape, dtype=torch.float32, device="meta")
        model, found = type(twin).from_pretrained(
            None,
            config=config,
            state_dict=held,
            device_map={"": "meta"},
            dtype=torch.float32,
            generation_config=_generation(origin),
            output_loading_info=True,
        )
    check_complete(origin.spec, model, found["missing_keys"])
    for name, buffer in twin.named_buffers():
        _put(model, name, buffer)
    return model


class _NoWeights(TorchFunctionMode):
    """Make what has no values yet, as parameters have, on the meta device from the start.

    accelerate moves each there from the CPU, where the C library's heap then keeps their addresses.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _generation(origin: Origin) -> Any:
    """How a checkpoint says that it generates, as transformers finds it."""
    from transformers import GenerationConfig

    only = origin.kept_only
    try:
        return GenerationConfig.from_pretrained(origin.source, local_files_only=only)
    except OSError:
        return GenerationConfig.from_pretrained(
            origin.source, config_file_name="config.json", local_files_only=only
        )


def _put(model: nn.Module, name: str, buffer: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    if last not in owner._buffers:
        raise GppruneError(f"{name!r} is no buffer: a defect")
    owner._buffers[last] = buffer


def short_of_memory(spec: str, progress: Progress = silent) -> str | None:
    """What a model would take in memory and what there is, for a reader; None: it fits.

    Args:
        spec: see `gpprune.load_model`.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError, GppruneError: as of `gpprune.load_model`, of what can be seen so far.
    """
    origin = Origin.of(spec, progress)
    with origin.reading("weights"):
        wanted = needed(files_of(origin.source, origin.kept_only))
    there = available(default_device())
    if wanted <= there:
        return None
    return f"{spec!r} takes some {wanted / 1e9:.3g} GB in memory, and {there / 1e9:.3g} GB are free"
