from __future__ import annotations

import pytest
import torch

from gpprune.errors import UsageError
from gpprune.evals import compute_dtype
from gpprune.evals.precision import fast_on_cpu


def test_a_named_precision_is_taken_as_it_is():
    assert compute_dtype("float32") == torch.float32
    assert compute_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_auto_is_float32_or_bfloat16():
    assert compute_dtype() in (torch.float32, torch.bfloat16)
    assert compute_dtype("auto", "cpu") == compute_dtype()


def test_auto_is_float32_where_nothing_is_known_of_the_device():
    assert compute_dtype("auto", "meta") == torch.float32


@pytest.mark.parametrize(
    ("name", "sets", "fast"),
    [
        ("AMD EPYC", {"avx512_bf16": True, "amx_bf16": False}, True),
        ("Intel Xeon", {"avx512_bf16": True, "amx_bf16": False}, False),
        ("Intel Xeon", {"avx512_bf16": True, "amx_bf16": True}, True),
        ("AMD EPYC", {"avx512_bf16": False, "amx_bf16": False}, False),
        ("Apple M2", {}, False),
    ],
)
def test_bfloat16_is_for_cpus_that_are_fast_at_it(
    name: str, sets: dict[str, bool], fast: bool
) -> None:
    assert fast_on_cpu({"cpu_name": name, **sets}) is fast


@pytest.mark.gpu
def test_auto_is_bfloat16_on_a_recent_gpu():
    assert compute_dtype("auto", "cuda") == torch.bfloat16


def test_unknown_precision_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'int4'.*auto, bfloat16, float32"):
        compute_dtype("int4")
