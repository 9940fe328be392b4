"""Allocations on models: the published ones by their papers, order, memory, exact masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_allocations import allocations
from random_formulas import statistics
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.primitives import (
    ALLOCATION,
    ALLOCATIONS,
    Formula,
    parse,
    published,
)
from gpprune.prune import (
    Allocator,
    LinearLayer,
    calibrate,
    exact_mask,
    linear_layers,
    load_model,
    parse_pattern,
    project,
    rank_scores,
)

Array = NDArray[np.float64]
WANDA = published["wanda"]
TARGETS = [0.3, 0.5, 0.6]


@dataclass(frozen=True)
class Measured:
    """A model's layers, what was measured of them, and Wanda's scores in float64."""

    layers: Mapping[str, LinearLayer]
    statistics: Mapping[str, Mapping[str, Tensor]]

    def allocator(self, target: float, unit: str = "layer") -> Allocator:
        return Allocator(self.layers, self.statistics, target, unit)

    @property
    def scores(self) -> list[Array]:
        return [
            np.abs(self.weight(name)) * self.statistics[name]["X"].double().numpy()
            for name in self.layers
        ]

    @property
    def blocks(self) -> list[int]:
        return [layer.block for layer in self.layers.values()]

    @property
    def sizes(self) -> Array:
        return np.array([float(layer.weight.numel()) for layer in self.layers.values()])

    def weight(self, name: str) -> Array:
        weight: Array = self.layers[name].weight.double().numpy()
        return weight

    def of_blocks(self) -> list[Array]:
        """Each block's scores in one vector."""
        return [
            np.concatenate(
                [s.reshape(-1) for s, at in zip(self.scores, self.blocks, strict=True) if at == b]
            )
            for b in dict.fromkeys(self.blocks)
        ]


def _deep() -> Measured:
    """Five blocks, no two alike: weights of other distributions, and more or fewer outliers.

    Inputs of all layers are of one size, so that logarithms of scores vary little, as DSA needs.
    """
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = LlamaForCausalLM(config)
    for layer in linear_layers(model).values():
        normal = torch.randn(layer.weight.shape, generator=generator)
        other = (layer.block * 3) % 5
        weight = normal.sign() * normal.abs() ** (0.5 + 0.1 * other) * 0.05
        outliers = torch.rand(layer.weight.shape, generator=generator) < 0.002 * (1 + other)
        layer.write(torch.where(outliers, 9 * weight, weight))
    found = _measured(model, torch.randint(512, (4, 32), generator=generator))
    equal = {name: {**s, "X": s["X"] / s["X"].mean()} for name, s in found.statistics.items()}
    return replace(found, statistics=equal)


def _measured(model: nn.Module, tokens: Tensor) -> Measured:
    return Measured(linear_layers(model), calibrate(model, tokens, ["X", "Y", "G"]))


@pytest.fixture(scope="module", params=["tiny_model_dir", "tiny_gpt2_dir", "deep"])
def measured(request: pytest.FixtureRequest, tiny_tokens: Tensor) -> Measured:
    if request.param == "deep":
        return _deep()
    model = load_model(str(request.getfixturevalue(request.param))).model
    return _measured(model, tiny_tokens[: 4 * 48].view(4, 48))


# The published allocations, by their papers' formulas


def met(wanted: Array, sizes: Array, target: float) -> Array:
    """Sparsities shifted together, between 0 and 0.99, until their mean is the target."""
    low, high = -3.0, 3.0
    for _ in range(100):
        middle = (low + high) / 2
        mean = np.average(np.clip(wanted + middle, 0, 0.99), weights=sizes)
        low, high = (middle, high) if mean < target else (low, middle)
    shifted: Array = np.clip(wanted + low, 0, 0.99)
    return shifted


def _minmax(x: Array) -> Array:
    """Blocks that are all alike have no order: all are at 0."""
    return (x - x.min()) / max(float(x.max() - x.min()), 1e-300)


def _per_layer(of_blocks: Array, model: Measured) -> Array:
    place = {block: at for at, block in enumerate(dict.fromkeys(model.blocks))}
    return of_blocks[[place[block] for block in model.blocks]]


def _uniform(model: Measured, target: float) -> Array:
    return np.full(len(model.layers), target)


def _under_one_threshold(scores: Sequence[Array], target: float) -> Array:
    pooled = np.sort(np.concatenate([s.reshape(-1) for s in scores]))
    cut = pooled[round(target * len(pooled)) - 1]
    return np.array([(s <= cut).mean() for s in scores])


def _global(model: Measured, target: float) -> Array:
    return _under_one_threshold(model.scores, target)


def _snip(model: Measured, target: float) -> Array:
    """The share of each layer under one threshold of |weight * gradient|."""
    gradients = [model.statistics[name]["G"].double() for name in model.layers]
    weights = [np.abs(model.weight(name)) for name in model.layers]
    products = [w * g.numpy() for w, g in zip(weights, gradients, strict=True)]
    return _under_one_threshold(products, target)


def _er(model: Measured, target: float, dense: Sequence[bool] = ()) -> Array:
    """Densities in proportion to (in + out) / (in * out); those above 1 are 1, the rest again."""
    layers = list(model.layers.values())
    raw = np.array([1 / layer.in_features + 1 / layer.out_features for layer in layers])
    full = np.array(dense) if len(dense) else np.zeros(len(raw), dtype=bool)
    while True:
        left = (1 - target) * model.sizes.sum() - model.sizes[full].sum()
        scale = left / (raw * model.sizes)[~full].sum()
        over = ~full & (raw * scale > 1)
        if not over.any():
            return 1 - np.where(full, 1, raw * scale)
        full |= over


def _er_plus(model: Measured, target: float) -> Array:
    return _er(model, target, [block == max(model.blocks) for block in model.blocks])


def _owl(model: Measured, target: float) -> Array:
    ratios = np.array([(s > 5 * s.mean()).mean() for s in model.of_blocks()])
    densities = _minmax(ratios) * 2 * 0.08
    return _per_layer(1 - (densities - densities.mean() + 1 - target), model)


def _dsa(model: Measured, target: float) -> Array:
    found = []
    for scores in model.of_blocks():
        variance = np.log(np.where(scores == 0, 1, scores)).var(ddof=1)
        angle = math.atan(variance)
        found.append(math.asin(angle) if angle <= 1 else 0.0)
    kept = _minmax(1 - _minmax(np.array(found))) * 0.16
    return _per_layer(1 - (kept - kept.mean() + (1 - target)), model)


def _exponent(weight: Array) -> float:
    """Hill's exponent of the tail, from about the peak of the spectrum, that fits best."""
    values = np.sort(np.linalg.svd(weight, compute_uv=False) ** 2)
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10 ** edges[counts.argmax()]
    fits = []
    for start, least in enumerate(values[:-1]):
        if math.log10(0.95 * peak) <= least <= 1.5 * peak:
            tail = values[start:]
            alpha = 1 + len(tail) / (np.log(tail) - np.log(least)).sum()
            fitted = 1 - (tail / least) ** (1 - alpha)
            fits.append((np.abs(fitted - np.arange(len(tail)) / len(tail)).max(), alpha))
    return float(min(fits)[1])


def _alphapruning(model: Measured, target: float) -> Array:
    each = np.array([_exponent(model.weight(name)) for name in model.layers])
    of_blocks = [each[np.array(model.blocks) == b].mean() for b in dict.fromkeys(model.blocks)]
    ratios = _per_layer(_minmax(np.array(of_blocks)) * 2 * 0.3 + 1 - 0.3, model)
    return ratios * target / np.average(ratios, weights=model.sizes)


def _atp(model: Measured, target: float) -> Array:
    count = len(set(model.blocks))
    steps = target + 0.2 * (np.arange(count) / (count - 1) - 0.5)
    return _per_layer(steps, model)


PAPERS: dict[str, Callable[[Measured, float], Array]] = {
    "uniform": _uniform,
    "global": _global,
    "snip": _snip,
    "er": _er,
    "er-plus": _er_plus,
    "owl": _owl,
    "dsa": _dsa,
    "alphapruning": _alphapruning,
    "atp": _atp,
}


def test_every_published_allocation_is_compared_where_it_tells_blocks_apart() -> None:
    assert PAPERS.keys() == ALLOCATIONS.keys()
    model = _deep()
    for name, paper in PAPERS.items():
        wanted = paper(model, 0.5)
        assert len(set(wanted.tolist())) >= (1 if name == "uniform" else 3), name


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("target", TARGETS)
def test_published_allocations_are_their_papers(
    measured: Measured, name: str, target: float
) -> None:
    entry = ALLOCATIONS[name]
    if name == "er-plus":
        target = min(target, 0.4)  # of two blocks, a dense one leaves no more than half to prune
    found = measured.allocator(target, entry.unit).sparsities(entry.formula, WANDA)
    wanted = PAPERS[name](measured, target)
    np.testing.assert_allclose(found, met(wanted, measured.sizes, target), rtol=0, atol=2e-4)
    if wanted.min() >= 0 and wanted.max() <= 0.99:  # nothing to clip: the paper's own numbers
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4", "N:8"])
@pytest.mark.parametrize("name", PAPERS)
def test_zeros_meet_the_target(measured: Measured, name: str, pattern: str) -> None:
    entry = ALLOCATIONS[name]
    zeros = measured.allocator(0.5, entry.unit).zeros(entry.formula, WANDA, parse_pattern(pattern))
    missing = int(measured.sizes.sum()) // 2 - int(zeros.sum())
    grains = [parse_pattern(pattern).grain(s.shape) for s in measured.scores]
    assert 0 <= missing < max(grains)
    assert not any(int(z) % grain for z, grain in zip(zeros, grains, strict=True))


def test_the_wider_of_er_is_the_sparser(measured: Measured) -> None:
    found = measured.allocator(0.5).sparsities(ALLOCATIONS["er"].formula, WANDA)
    sizes = torch.tensor(measured.sizes)
    assert bool((found[sizes == sizes.max()] > found[sizes == sizes.min()].max()).all())


def test_a_metric_that_was_not_measured_is_a_usage_error(measured: Measured) -> None:
    with pytest.raises(UsageError, match="reads D"):
        measured.allocator(0.5).sparsities(parse("threshold(S)", ALLOCATION), parse("D"))
    with pytest.raises(UsageError, match="there is no unit 'row'"):
        measured.allocator(0.5, "row")


def test_terminals_are_those_of_the_layers(measured: Measured) -> None:
    layers = list(measured.layers.values())
    terminals = measured.allocator(0.5).terminals
    deepest = max(measured.blocks)
    assert terminals["fan_in"].tolist() == [layer.in_features for layer in layers]
    assert terminals["fan_out"].tolist() == [layer.out_features for layer in layers]
    assert terminals["size"].tolist() == measured.sizes.tolist()
    assert terminals["depth"].tolist() == [block / deepest for block in measured.blocks]
    of_blocks = measured.allocator(0.5, "block").terminals
    first = [layer for layer in layers if layer.block == 0]
    assert float(of_blocks["size"][0]) == sum(layer.weight.numel() for layer in first)
    assert float(of_blocks["fan_in"][0]) == np.mean([layer.in_features for layer in first])
    assert of_blocks["depth"].tolist() == [b / deepest for b in range(deepest + 1)]


# Small models made by hand


class Small(nn.Module):
    """Blocks of two linear layers."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(blocks)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(16, 5, bias=False))
            for _ in range(blocks)
        )
        for parameter in self.parameters():
            random = torch.randn(parameter.shape, generator=generator)
            parameter.data = random * float(torch.rand((), generator=generator))


def small(blocks: int = 3) -> Measured:
    layers = linear_layers(Small(blocks))
    generator = torch.Generator().manual_seed(9)
    return Measured(
        layers,
        {
            name: statistics(generator, layer.out_features, layer.in_features)
            for name, layer in layers.items()
        },
    )


SMALL = small()
UNORDERED = frozenset(ALLOCATION.terminals) - {"depth"}


def _exact(name: str, entry: object) -> bool:
    """Nothing that turns a rounding into a jump, or knows the order of units."""
    jumps = ("outliers", "rank", "tan", "sin", "cos", "hill", "gram", "pz_", "dsa_")
    return not any(jump in name for jump in (*jumps, "cumsum", "smooth"))


def moved(model: Measured, numbers: Sequence[int]) -> Measured:
    """The same layers with their blocks renumbered."""
    layers, statistics = {}, {}
    for name, layer in model.layers.items():
        number = numbers[layer.block]
        new = name.replace(f"blocks.{layer.block}.", f"blocks.{number}.")
        layers[new] = replace(layer, name=new, block=number)
        statistics[new] = model.statistics[name]
    return Measured(layers, statistics)


def shuffled(model: Measured, places: Sequence[int]) -> Measured:
    """The same layers in another order."""
    names = list(model.layers)
    return Measured({names[at]: model.layers[names[at]] for at in places}, model.statistics)


EVERY = [
    f"spread({name}(S), 0.3)"
    for name in "mean var std l1 l2 largest entropy geomean kurtosis gram_rank logdet hill "  # noqa: SIM905
    "hill_peak".split()
] + [
    "spread(quantile(S, 0.3), 0.3)",
    "spread(outliers(S, 2), -0.3)",
    "spread(over_block(l2(S)), 0.3)",
    "spread(over_role(l2(S)), 0.3)",
    "spread(softmax(l2(S)), 0.3)",
    "spread(rank(l2(S)), 0.3)",
    "spread(zscore(fan_in), 0.3)",
    "over_block(sparse_as(l2(S)))",
    "over_role(dense_as(size))",
    "threshold(S)",
    "spread(dsa_importance(dsa_var(dsa_abslog(dsa_scores(S)))), 0.3)",
]


@pytest.mark.parametrize("unit", ["layer", "block"])
@pytest.mark.parametrize("text", EVERY)
def test_the_order_of_units_is_nothing(text: str, unit: str) -> None:
    formula = parse(text, ALLOCATION)
    found = SMALL.allocator(0.5, unit).sparsities(formula, WANDA)
    places = [3, 0, 5, 1, 4, 2]
    again = shuffled(SMALL, places).allocator(0.5, unit).sparsities(formula, WANDA)
    torch.testing.assert_close(again, found[places], rtol=0, atol=1e-7)
    renumbered = moved(SMALL, [2, 0, 1]).allocator(0.5, unit).sparsities(formula, WANDA)
    torch.testing.assert_close(renumbered, found, rtol=0, atol=1e-7)


@settings(max_examples=60)
@given(
    allocations(4, terminals=UNORDERED, admit=_exact),
    st.permutations(range(6)),
    st.permutations(range(3)),
)
def test_random_allocations_without_depth_know_no_order(
    formula: Formula, places: list[int], numbers: list[int]
) -> None:
    found = SMALL.allocator(0.5).sparsities(formula, WANDA)
    again = moved(shuffled(SMALL, places), numbers).allocator(0.5).sparsities(formula, WANDA)
    torch.testing.assert_close(again, found[places], rtol=0, atol=1e-6)


@settings(max_examples=100)
@given(allocations(4, admit=_exact))
@example(parse("sparse_as(zscore(neg(sub(depth, -3.92))))", ALLOCATION))  # the middle one is 0
@example(  # one is 0, but for the 12 digits of a constant
    parse(
        "sparse_as(sub(sub(0.01, neg(-1.05)), sub(sparse_as(depth), spread(fan_in, 2.04))))",
        ALLOCATION,
    )
)
def test_the_canonical_form_gives_the_same_sparsities(formula: Formula) -> None:
    allocator = SMALL.allocator(0.5)
    found = allocator.sparsities(formula, WANDA)
    form = allocator.sparsities(formula.canonical(), WANDA)
    torch.testing.assert_close(form, found, rtol=0, atol=1e-4)


@settings(max_examples=60)
@given(allocations(5), st.sampled_from(TARGETS))
@example(parse("over_role(sparse_as(dsa_importance(dsa_sin(dsa_scores(0.67)))))", ALLOCATION), 0.3)
def test_any_allocation_meets_the_target_or_is_unfit(formula: Formula, target: float) -> None:
    for unit in ("layer", "block"):
        allocator = SMALL.allocator(target, unit)
        try:
            found = allocator.sparsities(formula, WANDA)
        except Unfit as error:
            # it names the formula, or the part of it that is a constant
            part, named, _ = str(error).partition(" is a constant")
            assert formula.text in str(error) or (named and part in formula.text)
            continue
        assert np.average(found, weights=SMALL.sizes) == pytest.approx(target, abs=1e-12)
        zeros = allocator.zeros(formula, WANDA, parse_pattern("row"))
        assert int(zeros.sum()) == round(target * SMALL.sizes.sum())


def test_a_value_that_is_not_finite_is_unfit() -> None:
    small_model = small()
    for layer in small_model.layers.values():
        layer.write(layer.weight * 1e30)
    formula = parse("spread(dsa_importance(dsa_exp(dsa_scores(S))), 0.1)", ALLOCATION)
    assert torch.isfinite(small_model.allocator(0.5).sparsities(formula, WANDA)).all()


def test_one_layer_gets_the_target() -> None:
    name, layer = next(iter(SMALL.layers.items()))
    alone = Measured({name: layer}, SMALL.statistics)
    for text in [*EVERY, "spread(depth, 0.2)"]:
        found = alone.allocator(0.37).sparsities(parse(text, ALLOCATION), WANDA)
        assert found.tolist() == pytest.approx([0.37])


# Reductions are remembered


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("spread(l2(S), 0.2)", "sparse_as(add(l2(S), 1))"),
        ("spread(l2(mul(W, X)), 0.2)", "spread(log(l2(mul(X, W))), 0.3)"),
        ("threshold(S)", "mul(0.5, threshold(S))"),
        ("spread(hill(W), 0.2)", "sparse_as(hill(W))"),
        ("spread(outliers(S, 2), 0.2)", "dense_as(outliers(S, 2))"),
        (
            "spread(dsa_importance(dsa_std(dsa_scores(S))), 0.2)",
            "spread(sqr(dsa_importance(dsa_std(dsa_scores(S)))), 0.2)",
        ),
    ],
)
def test_a_reduction_is_computed_once(first: str, second: str) -> None:
    model = small()
    allocator = model.allocator(0.5)
    before = allocator.sparsities(parse(first, ALLOCATION), WANDA)
    wanted = small().allocator(0.5).sparsities(parse(second, ALLOCATION), WANDA)
    for at, layer in enumerate(model.layers.values()):
        layer.write(torch.linspace(-1, 1 + at, layer.weight.numel()).view(layer.weight.shape))
    assert torch.equal(allocator.sparsities(parse(first, ALLOCATION), WANDA), before)
    assert torch.equal(allocator.sparsities(parse(second, ALLOCATION), WANDA), wanted)
    other = allocator.sparsities(parse("spread(kurtosis(S), 0.2)", ALLOCATION), WANDA)
    fresh = model.allocator(0.5).sparsities(parse("spread(kurtosis(S), 0.2)", ALLOCATION), WANDA)
    assert torch.equal(other, fresh)  # one that is new reads the weights as they are


@pytest.mark.parametrize(
    "text", ["spread(l2(S), 0.2)", "threshold(S)", "sparse_as(size)", "mul(0.5, threshold(S))"]
)
def test_another_target_shares_the_reductions_that_do_not_depend_on_it(text: str) -> None:
    model = small()
    formula = parse(text, ALLOCATION)
    allocator = model.allocator(0.5)
    wanted = allocator.sparsities(formula, WANDA)
    assert torch.equal(
        allocator.at(0.3).sparsities(formula, WANDA),
        small().allocator(0.3).sparsities(formula, WANDA),
    )
    assert torch.equal(allocator.at(0.3).at(0.5).sparsities(formula, WANDA), wanted)
    for layer in model.layers.values():
        layer.write(layer.weight + 1)
    assert torch.equal(allocator.sparsities(formula, WANDA), wanted)
    known = "threshold" not in text
    late = allocator.at(0.6).sparsities(formula, WANDA)
    assert torch.equal(late, small().allocator(0.6).sparsities(formula, WANDA)) is known


def test_reductions_of_other_scores_and_numbers_are_their_own() -> None:
    allocator = SMALL.allocator(0.5)
    texts = ["spread(quantile(S, 0.1), 0.2)", "spread(quantile(S, 0.9), 0.2)"]
    for metric in (WANDA, published["magnitude"], parse("mul(sqr(W), G)")):
        for text in texts:
            formula = parse(text, ALLOCATION)
            alone = SMALL.allocator(0.5).sparsities(formula, metric)
            assert torch.equal(allocator.sparsities(formula, metric), alone)


@pytest.mark.parametrize("metric", ["sqr(mul(W, X))", "exp(W)", "add(mul(3, abs(W)), rowmean(G))"])
def test_the_scores_are_those_of_the_metric_and_not_their_order_alone(metric: str) -> None:
    for text in ("spread(kurtosis(S), 0.2)", "threshold(S)", "spread(quantile(S, 0.9), 0.2)"):
        found = SMALL.allocator(0.5).sparsities(parse(text, ALLOCATION), parse(metric))
        written = parse(text.replace("S", metric), ALLOCATION)
        assert torch.equal(found, SMALL.allocator(0.5).sparsities(written, WANDA))


# Exact masks and ranks

LEVELS = [-math.inf, -1.0, -0.0, 0.0, 1.0, 2.0, math.inf]
PATTERNS = ["row", "layer", "2:4", "N:8"]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, str, int]:
    """Scores with ties or without, a pattern, and a number of zeros that it can have."""
    pattern = draw(st.sampled_from(PATTERNS))
    shape = (draw(st.integers(1, 6)), 8 * draw(st.integers(1, 40)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        scores = torch.tensor(LEVELS)[torch.randint(len(LEVELS), shape, generator=generator)]
    else:
        scores = torch.randn(shape, generator=generator)
    grain = parse_pattern(pattern).grain(shape)
    return scores, pattern, grain * draw(st.integers(0, scores.numel() // grain))


def by_sorting(scores: Tensor, zeros: int, width: int) -> Tensor:
    """The first of a stable sort of each group; the first groups lose one more."""
    flat = scores.reshape(-1, width)
    each, extra = divmod(zeros, len(flat))
    mask = torch.zeros(flat.shape, dtype=torch.bool)
    for at, group in enumerate(flat):
        lost = torch.sort(group, stable=True).indices[: each + (at < extra)]
        mask[at, lost] = True
    return mask.view(scores.shape)


@given(scored())
def test_an_exact_mask_is_a_stable_sort_with_so_many_zeros(case: tuple[Tensor, str, int]) -> None:
    scores, text, zeros = case
    width = {"row": scores.shape[1], "layer": scores.numel(), "2:4": 4, "N:8": 8}[text]
    mask = exact_mask(scores, zeros, parse_pattern(text))
    assert mask.shape == scores.shape
    assert int(mask.sum()) == zeros
    counts = mask.reshape(-1, width).sum(1)
    assert int(counts.max() - counts.min()) <= 1
    assert torch.equal(mask, by_sorting(scores, zeros, width))


@given(scored())
def test_ranks_give_the_exact_mask(case: tuple[Tensor, str, int]) -> None:
    scores, text, zeros = case
    pattern = parse_pattern(text)
    ranks = rank_scores(scores, pattern)
    for count in {zeros, 0, scores.numel()}:
        assert torch.equal(ranks.mask(count), exact_mask(scores, count, pattern))


@pytest.mark.parametrize("columns", [255, 256, 257, 65_535, 65_536, 65_537])
def test_ranks_are_as_wide_as_a_row_needs(columns: int) -> None:
    scores = torch.rand(2, columns, generator=torch.Generator().manual_seed(0))
    pattern = parse_pattern("row")
    ranks = rank_scores(scores, pattern)
    assert ranks.values.itemsize == (1 if columns <= 256 else 2 if columns <= 65_536 else 4)
    for zeros in (0, 1, columns, columns + 1, 2 * columns - 1, 2 * columns):
        assert torch.equal(ranks.mask(zeros), exact_mask(scores, zeros, pattern))


def test_scores_without_order_are_refused() -> None:
    with pytest.raises(GppruneError, match="NaN"):
        rank_scores(torch.full((2, 4), math.nan), parse_pattern("row"))


def test_computed_sparsities_are_brought_to_the_budget(measured: Measured) -> None:
    allocator = measured.allocator(0.5)
    given = torch.linspace(0.1, 0.8, len(measured.layers)).double()
    exact = project(given, allocator.layer_sizes, 0.5)
    names = [layer.name for layer in measured.layers.values()]
    wanted = dict(zip(names, given.tolist(), strict=True))
    counts = allocator.zeros_near(wanted, parse_pattern("row"))
    assert int(counts.sum()) == int(measured.sizes.sum()) // 2
    assert bool((counts - exact * allocator.layer_sizes).abs().max() < 1)
