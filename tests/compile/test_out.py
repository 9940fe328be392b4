"""A prepared buffer for the scores: none of its memory is an input's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_formulas import layer
from torch import Tensor

from gpprune.compile import kernel
from gpprune.compile.memory import overlaps_itself, share_memory
from gpprune.errors import UsageError
from gpprune.primitives import parse

FORMULA = parse("add(div(abs(W), colsum(abs(W))), mul(X, Y))")
CPU = ["reference", "blocked", "machine", "generated"]


def dtype_of(backend: str) -> torch.dtype:
    return torch.float64 if backend == "reference" else torch.float32


def overlapping(name: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """Terminals, and a buffer for the scores that shares memory with them."""
    terminals = {n: t.to(dtype) for n, t in layer(0, 6, 8).items()}
    memory = torch.zeros(4, 12, 8, dtype=dtype)
    whole, flat = memory[0], memory.view(-1)
    match name:
        case "the same":
            return terminals | {"W": whole[:6]}, whole[:6]
        case "some rows":
            return terminals | {"W": whole[:6]}, whole[3:9]
        case "one element":
            return terminals | {"W": flat[:48].view(6, 8)}, flat[47:95].view(6, 8)
        case "some columns":
            wide = flat[:96].view(6, 16)
            return terminals | {"W": wide[:, :8]}, wide[:, 7:15]
        case "columns of the next row":
            narrow = flat[:90].view(6, 15)
            return terminals | {"W": narrow[:, 7:]}, narrow[:, 1:9]
        case "a vector inside":
            return terminals | {"X": whole[2]}, whole[:6]
        case "a column":
            return terminals | {"Y": flat[3:51:8]}, flat[:48].view(6, 8)
        case "turned":
            return terminals | {"W": flat[:48].view(8, 6).T}, flat[40:88].view(6, 8)
        case _:
            return terminals | {"W": flat[:40].view(5, 8)[:1].expand(6, 8)}, flat[4:52].view(6, 8)


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(
    "name",
    [
        "the same",
        "some rows",
        "one element",
        "some columns",
        "columns of the next row",
        "a vector inside",
        "a column",
        "turned",
        "repeated",
    ],
)
def test_a_buffer_in_an_inputs_memory_is_refused(name: str, backend: str) -> None:
    terminals, out = overlapping(name, dtype_of(backend))
    with pytest.raises(UsageError, match=r"out shares memory with [WXY]"):
        kernel(FORMULA, backend)(**terminals, out=out)
    assert not out.any()


def apart(name: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor]:
    """The same, and a buffer that lies beside them or between them."""
    terminals = {n: t.to(dtype) for n, t in layer(0, 6, 8).items()}
    memory = torch.full((6, 16), 7.0, dtype=dtype)
    match name:
        case "rows below":
            whole = memory.view(12, 8)
            return terminals | {"W": whole[:6].copy_(terminals["W"])}, whole[6:]
        case "columns between":
            return terminals | {"W": memory[:, :8].copy_(terminals["W"])}, memory[:, 8:]
        case "columns before":
            return terminals | {"W": memory[:, 8:].copy_(terminals["W"])}, memory[:, :8]
        case "read by nothing":
            return terminals | {"G": memory[:, :8]}, memory[:, :8]
        case _:  # which is copied to be read
            return terminals | {"W": memory[:, :8].copy_(-terminals["W"])._neg_view()}, memory[
                :, :8
            ]


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize(
    "name", ["rows below", "columns between", "columns before", "read by nothing", "negated"]
)
def test_a_buffer_beside_the_inputs_is_filled(name: str, backend: str) -> None:
    terminals, out = apart(name, dtype_of(backend))
    wanted = kernel(FORMULA, backend)(**{n: t.clone() for n, t in terminals.items()})
    assert kernel(FORMULA, backend)(**terminals, out=out) is out
    assert torch.equal(out, wanted)


@st.composite
def views(draw: st.DrawFn, memory: Tensor) -> Tensor:
    """A part of a memory as some vector or matrix."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))
    steps = draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)))
    reach = sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    return memory.as_strided(sizes, steps, draw(st.integers(0, len(memory) - 1 - reach)))


@given(st.data())
def test_no_shared_element_is_missed(data: st.DataObject) -> None:
    """Against numpy, which solves for one."""
    memory = torch.zeros(100)
    first, second = data.draw(views(memory)), data.draw(views(memory))
    shared = np.shares_memory(first.numpy(), second.numpy())
    assert share_memory(first, second) or not shared
    if first.dim() == 2:
        places = torch.arange(100).as_strided(first.shape, first.stride(), first.storage_offset())
        assert overlaps_itself(first) or len(places.unique()) == places.numel()
