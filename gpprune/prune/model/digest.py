"""Digests of a model and of its tokenizer: whether they are still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gpprune.progress import Progress, silent
from gpprune.prune.model.load import Loaded
from gpprune.prune.model.streamed.pages import values


def model_digest(loaded: Loaded) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of a model's parameters, in hexadecimal.

    A parameter that is tied to another counts once. The same weights in another dtype have
    another digest. It takes about a second a gigabyte.
    """
    return parameters_digest(loaded.model)


def stored_digest(loaded: Loaded, progress: Progress = silent) -> str:
    """As `model_digest`, of the model as it is written: in the dtypes of its checkpoint."""
    return parameters_digest(loaded.model, loaded.stored.dtypes, progress)


def parameters_digest(
    model: nn.Module,
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    progress: Progress = silent,
) -> str:
    """As `model_digest`, of a module, in other dtypes where they are named."""
    digest = hashlib.sha256()
    total = sum(1 for _ in model.parameters())
    for done, (name, own) in enumerate(values(model), start=1):
        parameter = own.detach().to(dtypes.get(name, own.dtype))
        head = f"{name} {parameter.dtype} {list(parameter.shape)}\n"
        digest.update(head.encode())
        digest.update(bytes_of(parameter))
        progress("hashing the weights", done, total)
    return digest.hexdigest()


def tokens_digest(tokens: Tensor) -> str:
    """SHA-256 of tokens ``[samples, length]``, in hexadecimal."""
    return hashlib.sha256(bytes_of(tokens)).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does to a text, in hexadecimal.

    Args:
        tokenizer: a transformers tokenizer; without a backend that can be written as JSON, its
            class and vocabulary stand for it.
    """
    as_json = getattr(getattr(tokenizer, "backend_tokenizer", None), "to_str", None)
    if as_json is None:
        return _sha256(type(tokenizer).__name__, json.dumps(sorted(tokenizer.get_vocab().items())))
    content = json.loads(as_json())
    # How it was called last, which is no part of what it is.
    content["truncation"] = content["padding"] = None
    # The model's large vocabulary comes in the order of its numbers, and sorting it takes long.
    model = json.dumps(content.pop("model"))
    return _sha256(model, json.dumps(content, sort_keys=True))


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in the order of its indices, without a copy where they lie so."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


# What says where a configuration came from or how it is run, and not what it computes.
_ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


def configuration_digest(loaded: Loaded) -> str:
    """What tells a model's configuration from others: a changed one computes something else."""
    model: Any = loaded.model
    fields = model.config.to_dict() if hasattr(model, "config") else {}
    content = {name: value for name, value in fields.items() if name not in _ASIDE}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
