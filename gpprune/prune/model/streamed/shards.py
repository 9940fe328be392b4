"""Write a checkpoint's safetensors tensor by tensor, in any order, as transformers writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpprune.errors import GppruneError
from gpprune.prune.model.digest import bytes_of
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.stored import Stored, check_number

# As safetensors calls them, in the order in which its files hold them.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_LARGEST = "50GB"  # of transformers where nothing is said


class Shards:
    """The files of a model's weights, each of its full size from the start.

    Names, order and sizes are those of ``save_pretrained``, so that a model that was written in
    parts has the bytes of one that was written whole. The files are sparse until they are filled.

    Args:
        folder: where they lie, see `begin`.
        model: a transformers model; its parameters may be on the meta device.
        stored: the dtypes to write, and the size of the largest file.

    Attributes:
        model: the model.
        folder: see above.
        index: what says in which file a tensor lies, as JSON has it; None: there is one file.
    """

    def __init__(self, folder: Path, model: Any, stored: Stored) -> None:
        from huggingface_hub import split_torch_state_dict_into_shards
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        self.model = model
        self.folder = folder
        self._stored = stored
        ignored = set(model._keys_to_ignore_on_save or ())
        own = {n: v for n, v in model.state_dict(keep_vars=True).items() if n not in ignored}
        # it goes by storages, which there are none of on the meta device: small ones stand for them
        small = {id(value): torch.empty(1) for value in own.values()}
        alike = {name: small[id(value)] for name, value in own.items()}
        self._names = set(remove_tied_weights_from_state_dict(alike, model))
        converted = self._converted(
            {
                name: torch.empty_like(value, dtype=self._dtype(name, value), device="meta")
                for name, value in own.items()
                if name in self._names
            }
        )
        split = split_torch_state_dict_into_shards(
            converted,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=_LARGEST if stored.shard is None else stored.shard,
        )
        self._places: dict[str, tuple[Path, int, Tensor]] = {}
        self._headers: dict[Path, tuple[bytes, int]] = {}  # how each begins, and how long it is
        for file, names in split.filename_to_tensors.items():
            self._lay_out(folder / file, {name: converted[name] for name in names})
        self.index: dict[str, Any] | None = None
        if split.is_sharded:
            total = {"total_parameters": model.num_parameters(), **split.metadata}
            self.index = {"metadata": total, "weight_map": split.tensor_to_filename}

    @property
    def files(self) -> list[Path]:
        """The files of weights."""
        return sorted(self._headers)

    def begin(self) -> None:
        """Make the folder and the files, which hold nothing but their headers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path, (head, size) in self._headers.items():
            with path.open("wb") as file:
                file.write(head)
                file.truncate(size)

    def check(self) -> None:
        """See that the folder holds these files, and no others of weights.

        Raises:
            ValueError: naming one that is missing, another or too much.
        """
        found = set(self.folder.glob("*.safetensors"))
        for path in sorted(found ^ self._headers.keys()):
            raise ValueError(f"{path.name!r} is {'too much' if path in found else 'missing'}")
        for path, (head, size) in self._headers.items():
            with path.open("rb") as file:
                if file.read(len(head)) != head or path.stat().st_size != size:
                    raise ValueError(f"{path.name!r} is another")

    def _dtype(self, name: str, value: Tensor) -> torch.dtype:
        return self._stored.dtypes.get(name, value.dtype)

    def _converted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in the model as the files hold them."""
        from transformers.core_model_loading import revert_weight_conversion

        with quiet_transformers():
            found: dict[str, Tensor] = revert_weight_conversion(self.model, state)
        return found

    def _lay_out(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Say where in a file each tensor lies, and how the file begins."""
        kinds = list(_NAMES)
        ordered = sorted(tensors.items(), key=lambda item: (kinds.index(item[1].dtype), item[0]))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in ordered:
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        begin = 8 + len(text)
        for name, tensor in ordered:
            self._places[name] = (path, begin + header[name]["data_offsets"][0], tensor)
        self._headers[path] = len(text).to_bytes(8, "little") + text, begin + end

    def put(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write parameters and buffers, by their names in the model, and see them on disk.

        Raises:
            GppruneError: one is NaN or infinite in the dtype that it is written in.
            OSError: there is no room.
        """
        held = {
            name: value.detach().to(self._dtype(name, value)).cpu()
            for name, value in tensors
            if name in self._names
        }
        for name, value in held.items():
            check_number(name, value)
        opened: dict[Path, int] = {}
        try:
            for name, value in self._converted(held).items():
                path, offset, wanted = self._places[name]
                if value.shape != wanted.shape or value.dtype != wanted.dtype:
                    raise GppruneError(f"{name!r} is of another form than laid out: a defect")
                if path not in opened:
                    opened[path] = os.open(path, os.O_WRONLY)
                _write(opened[path], bytes_of(value), offset)
            for file in opened.values():
                os.fsync(file)
        finally:
            for file in opened.values():
                os.close(file)


def _write(file: int, content: memoryview, offset: int) -> None:
    """All of it, where the system may take a part at a time."""
    while content:
        done = os.pwrite(file, content[: 1 << 30], offset)
        content, offset = content[done:], offset + done
