"""Read the weights of a part of a model from its checkpoint, by the rules of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.stored import opened

OUTSIDE = -1  # what lies in no part


class Parts:
    """A checkpoint's tensors, by the part of a model that they belong to.

    Names and layouts are converted as transformers does when it loads the model whole: experts that
    a file holds one by one come as a stack.

    Args:
        model: what it is read into, a transformers model.
        files: the safetensors.
        parts: the names of its parts; what lies in none of them is part `OUTSIDE`.
        device: where the weights come to lie.

    Attributes:
        names: what the files hold, as the model calls it.
    """

    def __init__(
        self, model: Any, files: Iterable[str | Path], parts: Sequence[str], device: torch.device
    ) -> None:
        self._model = model
        self._device = device
        prefixes = [f"{name}." for name in parts]
        self._keys: dict[int, dict[str, list[str]]] = {}  # of a part, of a file
        self.names: set[str] = set()
        renamed = _Renamed(model)
        for path in map(str, files):
            with opened(path) as file:
                for key in file.keys():  # noqa: SIM118
                    name = renamed(key)
                    self.names.add(name)
                    homes = (at for at, prefix in enumerate(prefixes) if name.startswith(prefix))
                    own = self._keys.setdefault(next(homes, OUTSIDE), {})
                    own.setdefault(path, []).append(key)

    def load(self, part: int) -> None:
        """Put the weights of a part into the model, in float32; the rest of it stays as it is."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        used = self._model._weight_conversions  # of the whole checkpoint: saving reverts them
        with ExitStack() as stack:
            stack.enter_context(quiet_transformers())
            slices: dict[str, Any] = {}
            for path, keys in self._keys.get(part, {}).items():
                file = stack.enter_context(opened(path))
                slices |= {key: file.get_slice(key) for key in keys}
            config = LoadStateDictConfig(
                device_map={"": self._device},
                dtype=torch.float32,
                weight_mapping=get_model_conversion_mapping(self._model),
            )
            try:
                convert_and_load_state_dict_in_model(self._model, slices, config)
            finally:
                self._model._weight_conversions = used


class _Renamed:
    """What transformers calls a tensor of a checkpoint in the model, as far as its first target."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(model)
        self._renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        self._converters = [each for each in mapping if isinstance(each, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()

    def __call__(self, key: str) -> str:
        from transformers.core_model_loading import rename_source_key

        for rules in ((self._renamings, self._converters), ([], [])):
            name: str = rename_source_key(key, *rules, self._prefix, self._state)[0]
            if name in self._state:
                break
        return name
