from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import on_threads
from torch import Tensor

from gpprune.compile.cpp import native
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import exact_mask, parse_pattern, prune_mask, pruned_count, rank_scores
from gpprune.prune.select.lowest.bisection import WIDEST, lowest_by_bisection
from gpprune.prune.select.lowest.histogram import lowest_by_histogram

LEVELS = [-math.inf, -2.0, -0.0, 0.0, 1e-30, 1.0, 3.5, math.inf]


@st.composite
def matrices(draw: st.DrawFn, multiple: int = 1) -> Tensor:
    """Score matrices: many ties and infinities, all equal, or nearly all different."""
    rows = draw(st.integers(1, 7))
    columns = multiple * draw(st.integers(1, 40))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    kind = draw(st.sampled_from(["ties", "constant", "distinct"]))
    if kind == "distinct":
        return torch.randn(rows, columns, generator=generator)
    levels = LEVELS if kind == "ties" else [draw(st.sampled_from(LEVELS))]
    places = torch.randint(len(levels), (rows, columns), generator=generator)
    return torch.tensor(levels)[places]


def by_sorting(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, dim=1, stable=True).indices[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, order, True)


shares = st.integers(0, 99).map(lambda percent: percent / 100)


@given(matrices(), shares)
def test_a_row_mask_is_the_head_of_a_stable_sort(scores: Tensor, sparsity: float) -> None:
    count = pruned_count(sparsity, scores.shape[1])
    assert torch.equal(prune_mask(scores, sparsity, "row"), by_sorting(scores, count))


BITS = st.integers(-(2**31), 2**31 - 1)


@given(st.lists(BITS, min_size=17, max_size=60), st.integers(1, 99), st.booleans())
def test_any_floats_are_told_apart_like_by_a_stable_sort(
    bits: list[int], percent: int, near: bool
) -> None:
    """Neighbouring floats, subnormal and infinite ones, of both signs."""
    close = [bits[0] // 2 + bit % 7 for bit in bits] if near else bits
    scores = torch.tensor([close, close[::-1]], dtype=torch.int32).view(torch.float32)
    scores = torch.where(torch.isnan(scores), 0.0, scores)
    count = pruned_count(percent / 100, scores.shape[1])
    assert torch.equal(prune_mask(scores, percent / 100, "row"), by_sorting(scores, count))


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def forget() -> None:
        native.forget()

    monkeypatch.setenv("PATH", str(tmp_path))
    forget()
    yield
    forget()


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    with on_threads(request.param):
        yield


def few_levels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).round(decimals=2)


# a layer of more than `WIDEST` is counted, one of less is bisected
SHAPES = [(600, 576), (3, 70_000), (40, 3001), (1, WIDEST + 1), (6000, 16)]


def check_rows_and_layer(scores: Tensor) -> None:
    count = pruned_count(0.37, scores.shape[1])
    assert torch.equal(prune_mask(scores, 0.37, "row"), by_sorting(scores, count))
    all_of_it = by_sorting(scores.reshape(1, -1), pruned_count(0.37, scores.numel()))
    assert torch.equal(prune_mask(scores, 0.37, "layer"), all_of_it.view(scores.shape))


@given(matrices(), st.sampled_from([1, 2, 3]), shares)
def test_a_band_of_rows_is_a_stable_sort_of_them_together(
    scores: Tensor, rows: int, sparsity: float
) -> None:
    whole = scores.repeat(rows, 1)
    bands = whole.reshape(len(scores), -1)
    wanted = by_sorting(bands, pruned_count(sparsity, bands.shape[1]))
    assert torch.equal(prune_mask(whole, sparsity, f"rows:{rows}"), wanted.view(whole.shape))


@given(matrices(multiple=3), shares)
def test_a_band_of_columns_is_a_stable_sort_of_its_weights(scores: Tensor, sparsity: float) -> None:
    wanted = torch.cat(
        [
            by_sorting(band.reshape(1, -1), pruned_count(sparsity, band.numel())).view(band.shape)
            for band in scores.split(3, dim=1)
        ],
        dim=1,
    )
    assert torch.equal(prune_mask(scores, sparsity, "cols:3"), wanted)
    pattern = parse_pattern("cols:3")
    exact = exact_mask(scores, scores.numel() // 2, pattern)
    assert int(exact.sum()) == scores.numel() // 2
    each = [int(band.sum()) for band in exact.split(3, dim=1)]
    assert max(each) - min(each) <= 1
    assert torch.equal(rank_scores(scores, pattern).mask(scores.numel() // 2), exact)


def test_a_band_of_rows_has_its_share_of_exact_zeros() -> None:
    pattern = parse_pattern("rows:2")
    mask = exact_mask(torch.randn(6, 5), 16, pattern)
    assert mask.view(3, 10).sum(1).tolist() == [6, 5, 5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows:4", "6 output neurons are not divisible by 4"),
        ("rows:0", "rows:N with N from 1"),
        ("cols:2", "5 input features are not divisible by 2"),
        ("cols:0", "cols:N with N from 1"),
    ],
)
def test_a_band_that_does_not_fit_is_named(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        prune_mask(torch.randn(6, 5), 0.5, text)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("threads")
def test_wide_and_many_rows_are_as_by_a_stable_sort(shape: tuple[int, int]) -> None:
    check_rows_and_layer(few_levels(*shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_masks_are_the_same(shape: tuple[int, int]) -> None:
    assert lowest_by_histogram(torch.ones(1, 2), 1) is None
    check_rows_and_layer(few_levels(*shape))


@pytest.mark.parametrize("select", [lowest_by_histogram, lowest_by_bisection])
def test_a_part_of_a_matrix_is_read_where_it_lies(
    select: Callable[[Tensor, int], Tensor | None],
) -> None:
    scores = few_levels(40, 600)[:, 5:500]
    assert_mask(select(scores, 99), by_sorting(scores, 99))
    across = few_levels(600, 40).t()
    assert_mask(select(across, 99), by_sorting(across, 99))


def assert_mask(found: Tensor | None, wanted: Tensor) -> None:
    if found is None:
        pytest.skip("there is no C++ compiler")
    assert torch.equal(found, wanted)


@given(st.lists(BITS, min_size=2, max_size=60), st.data(), st.booleans())
def test_counting_tells_any_floats_apart(
    bits: list[int], st_data: st.DataObject, near: bool
) -> None:
    close = [bits[0] // 2 + bit % 7 for bit in bits] if near else bits
    scores = torch.tensor([close], dtype=torch.int32).view(torch.float32)
    scores = torch.where(torch.isnan(scores), 0.0, scores)
    count = st_data.draw(st.integers(1, scores.shape[1] - 1))
    assert_mask(lowest_by_histogram(scores, count), by_sorting(scores, count))


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([*LEVELS, -math.inf, 1e-45, -1e-45]), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.integers(0, 200_000),
    st.booleans(),
)
@pytest.mark.usefixtures("threads")
def test_ties_of_a_counted_row_go_lowest_first_whichever_thread_has_them(
    levels: list[float], seed: int, count: int, ordered: bool
) -> None:
    places = torch.randint(len(levels), (200_001,), generator=torch.Generator().manual_seed(seed))
    scores = torch.tensor(levels)[places.sort().values if ordered else places][None]
    assert_mask(lowest_by_histogram(scores, max(1, count)), by_sorting(scores, max(1, count)))


@given(matrices(), shares)
def test_a_layer_mask_is_the_head_of_a_stable_sort_of_all(scores: Tensor, sparsity: float) -> None:
    count = pruned_count(sparsity, scores.numel())
    expected = by_sorting(scores.reshape(1, -1), count).view(scores.shape)
    assert torch.equal(prune_mask(scores, sparsity, "layer"), expected)


@given(st.data(), st.integers(2, 24))
def test_an_n_m_mask_is_a_stable_sort_of_each_group(st_data: st.DataObject, size: int) -> None:
    kept = st_data.draw(st.integers(1, size))
    scores = st_data.draw(matrices(multiple=size))
    groups = by_sorting(scores.reshape(-1, size), size - kept)
    mask = prune_mask(scores, None, f"{kept}:{size}")
    assert torch.equal(mask, groups.view(scores.shape))


@pytest.mark.parametrize("size", range(2, 17))
@pytest.mark.usefixtures("threads")
def test_many_groups_are_each_as_by_a_stable_sort(size: int) -> None:
    scores = few_levels(1001, 17 * size)
    groups = by_sorting(scores.reshape(-1, size), size - 1)
    assert torch.equal(prune_mask(scores, None, f"1:{size}"), groups.view(scores.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_of_any_width_are_ordered_as_they_are(dtype: torch.dtype) -> None:
    scores = torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(prune_mask(scores, 0.5, "row"), by_sorting(scores, 32))
    groups = by_sorting(scores.reshape(-1, 4), 2).view(scores.shape)
    assert torch.equal(prune_mask(scores, None, "2:4"), groups)


@pytest.mark.parametrize("shape", [(1, 4), (1, 64), (1, WIDEST + 1)])
def test_float64_is_told_apart_where_float32_is_not(shape: tuple[int, int]) -> None:
    scores = 1 - torch.arange(shape[1], dtype=torch.float64)[None] * 1e-14
    half = shape[1] // 2
    assert torch.equal(prune_mask(scores, 0.5, "row"), by_sorting(scores, half))


def test_scores_that_are_a_view_are_ordered_as_the_view_shows_them() -> None:
    scores = torch.randn(48, 20, generator=torch.Generator().manual_seed(1)).t()
    assert torch.equal(prune_mask(scores, 0.25, "row"), by_sorting(scores, 12))
    assert torch.equal(
        prune_mask(scores, None, "2:4"), prune_mask(scores.contiguous(), None, "2:4")
    )


@given(shares, st.integers(0, 5000))
def test_the_count_is_that_of_the_decimal_number(sparsity: float, size: int) -> None:
    assert pruned_count(sparsity, size) == round(sparsity * 100) * size // 100


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0, math.nan, math.inf])
def test_a_sparsity_outside_its_range_is_named(sparsity: float) -> None:
    with pytest.raises(UsageError, match=str(sparsity)):
        prune_mask(torch.ones(2, 4), sparsity, "row")


@pytest.mark.parametrize("pattern", ["", "rows", "2:", "0:4", "5:4", "2:4:8", "-1:4", "²:4"])
def test_an_unknown_pattern_is_named(pattern: str) -> None:
    with pytest.raises(UsageError, match="pattern"):
        parse_pattern(pattern)


def test_a_pattern_and_a_sparsity_that_disagree_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'2:4' prunes a share of 0.5, not 0.6"):
        prune_mask(torch.ones(2, 4), 0.6, "2:4")


def test_a_row_pattern_needs_a_sparsity() -> None:
    with pytest.raises(UsageError, match="needs a sparsity"):
        prune_mask(torch.ones(2, 4), None, "row")


def test_features_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(UsageError, match="6 input features are not divisible by 4"):
        prune_mask(torch.ones(2, 6), None, "2:4")


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4"])
def test_nan_scores_are_refused(pattern: str) -> None:
    scores = torch.ones(3, 8)
    scores[1, 2] = math.nan
    with pytest.raises(GppruneError, match="NaN"):
        prune_mask(scores, 0.5, pattern)


def test_groups_say_what_scores_compete_with() -> None:
    groups = {"row": "row", "cols:4": "layer", "layer": "layer", "model": "model", "2:4": "row"}
    assert {text: parse_pattern(text).group for text in groups} == groups
