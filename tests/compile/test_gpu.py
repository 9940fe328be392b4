"""Kernels and masks on a CUDA device, against NumPy in float64 and the CPU's stable sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy_reference import evaluate, float32_tolerance
from random_formulas import COMPILED, layer
from torch import Tensor

from gpprune.compile import kernel
from gpprune.errors import GppruneError
from gpprune.primitives import Formula, parse, published
from gpprune.prune import parse_pattern, prune_mask
from gpprune.prune.select.masks import exact_mask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

DEVICE = "cuda"
SHAPES = [(6, 9), (13, 4), (32, 96), (300, 1030)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]

TEXTS = pytest.mark.parametrize("text", COMPILED)
BACKENDS = pytest.mark.parametrize("backend", ["blocked", "inductor"])
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def there(terminals: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: value.to(DEVICE, dtype) for name, value in terminals.items()}


def check(formula: Formula, backend: str, terminals: dict[str, Tensor]) -> None:
    """Its scores of these, which lie on the device, are float64's to what float32 can tell."""
    exact = {name: value.double().cpu() for name, value in terminals.items()}
    wanted = evaluate(formula, exact)
    slack = float32_tolerance(formula, exact)
    scores = kernel(formula, backend)(**terminals)
    assert scores.device.type == DEVICE
    assert scores.dtype == torch.float32
    found = scores.cpu().double().numpy()
    assert np.all((np.abs(found - wanted) <= slack) | (np.abs(wanted) > 1e30))


@DTYPES
@BACKENDS
@TEXTS
def test_scores_are_float64s_to_float32(text: str, backend: str, dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        check(parse(text), backend, there(layer(seed, *shape), dtype))


@BACKENDS
def test_statistics_may_be_wider_than_weights(backend: str) -> None:
    terminals = there(layer(1, 40, 70))
    check(published["gblm"], backend, {**terminals, "W": terminals["W"].bfloat16()})


@TEXTS
def test_one_compile_serves_every_shape(text: str) -> None:
    run = kernel(parse(text), "inductor")
    run(**there(layer(0, *SHAPES[0])))
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in SHAPES[1:]:
            run(**there(layer(0, *shape)))


@TEXTS
def test_blocks_of_rows_do_not_show(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = there(layer(3, 50, 9))
    whole = kernel(parse(text), "blocked")(**terminals)
    monkeypatch.setattr("gpprune.compile.backends.LAUNCHED_BLOCK", 64)
    torch.testing.assert_close(kernel(parse(text), "blocked")(**terminals), whole)


EXTREMES = [0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45, -1e-45, 1.2e-38, 1e19, -1e20, 88.8, 65504.0]


@BACKENDS
@TEXTS
def test_finite_inputs_give_finite_scores(text: str, backend: str) -> None:
    grid = torch.tensor(EXTREMES).reshape(3, 4)
    drawn = layer(0, 3, 4)  # shapes and signs
    terminals = {
        name: extreme if value.min() < 0 else extreme.abs()
        for name, value in drawn.items()
        for extreme in [grid.flip(0).flatten()[: value.numel()].view(value.shape)]
    }
    scores = kernel(parse(text), backend)(**there({**terminals, "W": grid}))
    assert torch.isfinite(scores).all()


@BACKENDS
def test_a_prepared_buffer_is_filled_in_place(backend: str) -> None:
    terminals = there(layer(0))
    out = torch.full((6, 9), math.nan, device=DEVICE)
    address = out.data_ptr()
    assert kernel(published["wanda"], backend)(**terminals, out=out) is out
    assert out.data_ptr() == address
    torch.testing.assert_close(out, terminals["W"].abs() * terminals["X"])


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine", "inductor"])
def test_statistics_on_the_cpu_are_taken_to_the_weights(backend: str) -> None:
    terminals = layer(0)
    wanted = (terminals["W"].abs() * terminals["X"]).double()
    terminals["W"] = terminals["W"].to(DEVICE)
    found = kernel(published["wanda"], backend)(**terminals)
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("elements", [0, 10**14])
def test_what_is_chosen_for_the_device_runs_there(elements: int) -> None:
    run = kernel(published["ria"], elements=elements, device=DEVICE)
    assert run.backend in ("blocked", "inductor")
    check(published["ria"], run.backend, there(layer(2, 30, 50)))


def test_pruner_zeros_gradients_are_rounded_to_float16() -> None:
    terminals = there(layer(5, 40, 60))
    found = [
        kernel(parse("pz_half(G)"), backend)(**terminals) for backend in ("blocked", "inductor")
    ]
    wanted = (terminals["G"] * 100).half().float()
    assert all(torch.equal(scores, wanted) for scores in found)


# Masks: of equal scores the first goes, -0 is 0, and infinities have their order.
LEVELS = [-math.inf, -2.0, -0.0, 0.0, 1e-45, 1e-30, 1.0, 3.5, math.inf]


def score_matrices() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(LEVELS), (64, 2048), generator=generator)
    return {
        "ties": torch.tensor(LEVELS)[places],
        "constant": torch.ones(7, 40),
        "zeros": torch.where(places < 4, -0.0, 0.0),
        "distinct": torch.randn(600, 576, generator=generator),
        "rounded": torch.randn(40, 3000, generator=generator).round(decimals=2),
        "wide": torch.randn(3, 70_000, generator=generator).round(decimals=3),
        "bfloat16": torch.randn(50, 512, generator=generator).bfloat16(),
        "turned": torch.randn(48, 20, generator=generator).t(),
    }


MATRICES = score_matrices()


def by_sorting(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, True)


@pytest.mark.parametrize("name", list(MATRICES))
@pytest.mark.parametrize("percent", [0, 1, 37, 50, 99])
def test_masks_are_the_head_of_the_cpus_stable_sort(name: str, percent: int) -> None:
    scores = MATRICES[name]
    rows, columns = scores.shape
    row, whole = (
        prune_mask(scores.to(DEVICE), percent / 100, pattern) for pattern in ("row", "layer")
    )
    assert row.device.type == whole.device.type == DEVICE
    assert torch.equal(row.cpu(), by_sorting(scores, percent * columns // 100))
    flat = by_sorting(scores.reshape(1, -1), percent * rows * columns // 100)
    assert torch.equal(whole.cpu(), flat.view(scores.shape))


@pytest.mark.parametrize("name", list(MATRICES))
def test_masks_of_groups_and_of_exact_counts_are_the_cpus(name: str) -> None:
    scores = MATRICES[name]
    moved = scores.to(DEVICE)
    if scores.shape[1] % 4 == 0:
        assert torch.equal(prune_mask(moved, None, "2:4").cpu(), prune_mask(scores, None, "2:4"))
    for pattern in map(parse_pattern, ("row", "layer")):
        zeros = scores.numel() // 3
        mask = exact_mask(moved, zeros, pattern).cpu()
        assert int(mask.sum()) == zeros
        assert torch.equal(mask, exact_mask(scores, zeros, pattern))


def test_nan_scores_are_refused() -> None:
    scores = torch.ones(4, 8, device=DEVICE)
    scores[2, 3] = math.nan
    with pytest.raises(GppruneError, match="NaN"):
        prune_mask(scores, 0.5, "row")
