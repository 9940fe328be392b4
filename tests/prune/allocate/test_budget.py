"""The budget: sparsities that meet the target, and whole zeros that meet it exactly."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Decimal
from random import Random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune import project, total_zeros, zero_counts
from gpprune.prune.allocate.budget import HIGHEST

targets = st.integers(0, 999).map(lambda thousandths: thousandths / 1000)
numbers = st.one_of(
    st.floats(-1, 1),
    st.sampled_from([0.0, 0.25, 1.0, 1e300, -1e300, 1e6, 1e6 + 0.3, 1e-300]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.floats(),
)


@st.composite
def units(draw: st.DrawFn, most: int = 12) -> tuple[Tensor, Tensor]:
    """A profile, float64, and the sizes, int64, of as many units."""
    count = draw(st.integers(1, most))
    if draw(st.booleans()):
        profile = draw(st.lists(numbers, min_size=count, max_size=count))
    else:
        profile = [draw(numbers)] * count
    size = st.one_of(st.integers(1, 30), st.integers(1, 1_000_000))
    sizes = draw(st.lists(size, min_size=count, max_size=count))
    return torch.tensor(profile, dtype=torch.float64), torch.tensor(sizes)


def whole(target: float, weights: int) -> int:
    return int((Decimal(str(target)) * weights).to_integral_value(ROUND_HALF_EVEN))


def mean(sparsities: Tensor, sizes: Tensor) -> float:
    return float((sparsities * sizes).sum() / sizes.sum())


@given(units(), targets)
@example((torch.tensor([1e6, 1e6 + 0.3, 1e6 - 0.7]).double(), torch.tensor([3, 5, 7])), 0.5)
@example((torch.tensor([1e6, 0.1, -0.1, -1e6]).double(), torch.tensor([3, 5, 7, 9])), 0.5)
def test_the_mean_of_the_sparsities_is_the_target(
    given_units: tuple[Tensor, Tensor], target: float
) -> None:
    profile, sizes = given_units
    sparsities = project(profile, sizes, target)
    assert sparsities.dtype == torch.float64
    assert bool(((sparsities >= 0) & (sparsities <= max(HIGHEST, target))).all())
    assert mean(sparsities, sizes) == pytest.approx(target, rel=0, abs=1e-12)


@given(units(), targets)
def test_sparsities_are_in_the_order_of_the_profile(
    given_units: tuple[Tensor, Tensor], target: float
) -> None:
    profile, sizes = given_units
    sparsities = project(profile, sizes, target)
    order = torch.where(torch.isnan(profile), 0.0, profile).argsort()
    assert bool((sparsities[order].diff() >= 0).all())
    same = profile[:, None] == profile[None, :]
    assert bool((sparsities[:, None] == sparsities[None, :])[same].all())


@given(units(), targets, st.randoms(use_true_random=False))
def test_permuting_the_units_permutes_the_sparsities(
    given_units: tuple[Tensor, Tensor], target: float, random: Random
) -> None:
    profile, sizes = given_units
    places = list(range(len(sizes)))
    random.shuffle(places)
    moved = project(profile[places], sizes[places], target)
    torch.testing.assert_close(moved, project(profile, sizes, target)[places], rtol=0, atol=1e-9)


@given(st.lists(st.floats(-0.05, 0.05), min_size=2, max_size=9), st.data())
def test_without_clipping_it_is_the_centred_profile(
    values: list[float], data: st.DataObject
) -> None:
    size = st.integers(1, 1_000_000)
    sizes = torch.tensor(data.draw(st.lists(size, min_size=len(values), max_size=len(values))))
    profile = torch.tensor(values, dtype=torch.float64)
    wanted = 0.5 + profile - mean(profile, sizes)
    torch.testing.assert_close(project(profile, sizes, 0.5), wanted, rtol=0, atol=1e-12)


def test_clipped_units_leave_the_rest_to_the_others_as_bisection_does() -> None:
    profile = torch.tensor([0.9, 0.1, 0.0, -0.2, -0.9], dtype=torch.float64)
    sizes = torch.tensor([10, 20, 30, 40, 50])
    low, high = -5.0, 5.0
    for _ in range(200):
        middle = (low + high) / 2
        at = mean((profile + middle).clamp(0, 0.99), sizes)
        low, high = (middle, high) if at < 0.6 else (low, middle)
    wanted = (profile + low).clamp(0, 0.99)
    assert wanted[0] == 0.99 and wanted[-1] < 0.1
    torch.testing.assert_close(project(profile, sizes, 0.6), wanted, rtol=0, atol=1e-12)


def test_a_highest_sparsity_is_kept_to() -> None:
    profile = torch.tensor([1.0, 0.0, -1.0])
    sizes = torch.tensor([4, 4, 4])
    assert project(profile, sizes, 0.5, highest=0.8).tolist() == pytest.approx([0.8, 0.7, 0.0])
    with pytest.raises(UsageError, match=r"0\.5 is above the highest sparsity of a layer, 0\.4"):
        project(profile, sizes, 0.5, highest=0.4)


@pytest.mark.parametrize("target", [1.0, -0.1, math.nan])
def test_an_impossible_target_is_named(target: float) -> None:
    with pytest.raises(UsageError, match=str(target)):
        project(torch.zeros(2), torch.tensor([1, 1]), target)


def test_a_unit_without_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="a unit has 0 weights"):
        project(torch.zeros(2), torch.tensor([1, 0]), 0.5)


@given(targets, st.integers(1, 10**9))
@example(0.5, 5)
@example(0.5, 7)
@example(0.29, 50)
def test_the_total_is_the_decimal_number_rounded_half_to_even(target: float, weights: int) -> None:
    assert total_zeros(target, weights) == whole(target, weights)


@given(units(), targets)
@example((torch.tensor([1e6, 1e6 + 0.3, 1e6 - 0.7]).double(), torch.tensor([3, 10**6, 7])), 0.5)
@example((torch.zeros(12).double(), torch.full((12,), 1)), 0.5)
@example((torch.tensor([math.inf] * 6 + [-math.inf] * 6).double(), torch.full((12,), 3)), 0.999)
def test_zeros_add_up_to_the_target_exactly(
    given_units: tuple[Tensor, Tensor], target: float
) -> None:
    profile, sizes = given_units
    sparsities = project(profile, sizes, target)
    zeros = zero_counts(sparsities, sizes, target, torch.ones_like(sizes))
    assert zeros.dtype == torch.int64
    assert int(zeros.sum()) == whole(target, int(sizes.sum()))
    assert bool(((zeros >= 0) & (zeros <= sizes)).all())
    # whole zeros lie beside the sparsity that they stand for
    assert bool(((zeros - sparsities * sizes).abs() < 1 + 1e-6 * sizes).all())


def test_the_greatest_remainders_get_the_zeros_left_over() -> None:
    sizes = torch.tensor([10, 10, 10])
    sparsities = torch.tensor([0.52, 0.58, 0.40], dtype=torch.float64)
    assert zero_counts(sparsities, sizes, 0.5, torch.ones(3).long()).tolist() == [5, 6, 4]


@st.composite
def grained(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A profile, sizes and grains of N:M layers: groups of M weights, as many in each layer."""
    profile, groups = draw(units())
    group = draw(st.sampled_from([2, 4, 8, 16]))
    return profile, groups * group, groups


@given(grained(), targets)
def test_zeros_of_groups_come_in_whole_groups(
    given_units: tuple[Tensor, Tensor, Tensor], target: float
) -> None:
    profile, sizes, grain = given_units
    zeros = zero_counts(project(profile, sizes, target), sizes, target, grain)
    assert bool((zeros % grain == 0).all())
    assert bool(((zeros >= 0) & (zeros <= sizes)).all())
    missing = whole(target, int(sizes.sum())) - int(zeros.sum())
    assert missing >= 0
    # no layer that has room could take another step
    assert bool((missing < grain)[zeros < sizes].all())


@given(units(), targets, st.data())
def test_layers_without_grain_fill_up_what_is_left(
    given_units: tuple[Tensor, Tensor], target: float, data: st.DataObject
) -> None:
    profile, groups = given_units
    count = len(groups)
    fine = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    sizes = groups * 4
    zeros = zero_counts(
        project(profile, sizes, target), sizes, target, torch.where(fine, 1, groups)
    )
    missing = whole(target, int(sizes.sum())) - int(zeros.sum())
    assert missing >= 0
    assert missing == 0 or bool((zeros == sizes)[fine].all())


@pytest.mark.parametrize(("target", "of_four"), [(0.25, 1), (0.5, 2), (0.75, 3)])
def test_uniform_groups_are_exact(target: float, of_four: int) -> None:
    groups = torch.tensor([7, 12_345, 250_000, 1])
    sizes = 4 * groups
    uniform = project(torch.zeros(4), sizes, target)
    assert zero_counts(uniform, sizes, target, groups).tolist() == (of_four * groups).tolist()
