"""Fitness of allocations and of joint formulas: the losses of models pruned by their zeros."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from gpprune.errors import GppruneError, Unfit, UsageError
from gpprune.evals import AllocationFitness, JointFitness, MetricFitness, window_losses, windows
from gpprune.evals import calibration_samples as samples_of
from gpprune.primitives import ALLOCATION, ALLOCATIONS, JOINT, Formula, parse, published
from gpprune.prune import Allocator, calibrate, linear_layers, parse_pattern

Statistics = dict[str, dict[str, Tensor]]
WANDA = published["wanda"]
DEEPER = "spread(depth, 0.3)"


@pytest.fixture(scope="module", params=["tiny_model_dir", "tiny_gpt2_dir"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    folder: Path = request.getfixturevalue(request.param)
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def statistics(model: nn.Module, tiny_tokens: Tensor) -> Statistics:
    return calibrate(model, samples_of(tiny_tokens, 4, 64, seed=0), ["X", "Y", "G"])


@pytest.fixture(scope="module")
def judged(tiny_tokens: Tensor) -> Tensor:
    return windows(tiny_tokens, 3, 64)


@pytest.fixture
def fitness(model: nn.Module, statistics: Statistics, judged: Tensor) -> AllocationFitness:
    return AllocationFitness(model, statistics, judged, metric=WANDA, sparsity=0.5)


@pytest.fixture
def joint(model: nn.Module, statistics: Statistics, judged: Tensor) -> JointFitness:
    return JointFitness(model, statistics, judged, sparsity=0.5)


def formula(text: str) -> Formula:
    return parse(text, ALLOCATION)


def pair(text: str) -> Formula:
    return parse(text, JOINT)


def zero_share(pruned: nn.Module) -> float:
    weights = [layer.weight for layer in linear_layers(pruned).values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def wanda_scores(model: nn.Module, statistics: Statistics) -> list[Tensor]:
    return [
        layer.weight.abs() * statistics[name]["X"] for name, layer in linear_layers(model).items()
    ]


def pruned(model: nn.Module, scores: Sequence[Tensor], zeros: Tensor, width: str) -> nn.Module:
    """A copy without the lowest scores of each layer, row by row or of all of it."""
    copied = copy.deepcopy(model)
    layers = linear_layers(copied).values()
    for layer, score, count in zip(layers, scores, zeros.tolist(), strict=True):
        groups = score if width == "row" else score.reshape(1, -1)
        each, extra = divmod(count, len(groups))
        mask = torch.zeros(groups.shape, dtype=torch.bool)
        for at, group in enumerate(groups):
            lost = each + (at < extra)
            mask[at, torch.sort(group, stable=True).indices[:lost]] = True
        layer.write(layer.weight.masked_fill(mask.view(score.shape), 0))
    return copied


def same(found: Sequence[float], wanted: Tensor) -> None:
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), wanted, rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("pattern", ["row", "layer"])
@pytest.mark.parametrize("unit", ["layer", "block"])
@pytest.mark.parametrize("text", ["owl", "global", DEEPER])
def test_losses_are_those_of_a_model_pruned_by_the_same_zeros(
    model: nn.Module, statistics: Statistics, judged: Tensor, text: str, unit: str, pattern: str
) -> None:
    fitness = AllocationFitness(
        model, statistics, judged, metric=WANDA, sparsity=0.5, pattern=pattern, unit=unit
    )
    tested = ALLOCATIONS[text].formula if text in ALLOCATIONS else formula(text)
    allocator = Allocator(linear_layers(model), statistics, 0.5, unit)
    zeros = allocator.zeros(tested, WANDA, parse_pattern(pattern))
    assert fitness.zeros(tested).tolist() == zeros.tolist()
    copied = pruned(model, wanda_scores(model, statistics), zeros, pattern)
    wanted = window_losses(copied, judged)
    same(fitness.prepare(tested)(0, 3), wanted)
    assert zero_share(fitness.model) == pytest.approx(0.5, abs=1e-5)
    (judgement,) = fitness.judge(tested, judged)
    same(judgement.losses.tolist(), wanted)
    both = JointFitness(model, statistics, judged, sparsity=0.5, pattern=pattern, unit=unit)
    together = pair(f"joint({WANDA.text}, {tested.text})")
    assert both.zeros(together).tolist() == zeros.tolist()
    same(both.prepare(together)(0, 3), wanted)
    (judgement,) = both.judge(together, judged)
    same(judgement.losses.tolist(), wanted)


def test_uniform_is_the_metric_alone(
    model: nn.Module, statistics: Statistics, judged: Tensor, fitness: AllocationFitness
) -> None:
    alone = MetricFitness(model, statistics, judged, sparsity=0.5)
    wanted = torch.tensor(alone.prepare(WANDA)(0, 3), dtype=torch.float64)
    same(fitness.prepare(formula("0"))(0, 3), wanted)


def test_groups_keep_their_pattern(
    model: nn.Module, statistics: Statistics, judged: Tensor
) -> None:
    fitness = AllocationFitness(
        model, statistics, judged, metric=WANDA, sparsity=0.5, pattern="N:8"
    )
    fitness.prepare(formula(DEEPER))(0, 1)
    counts = set()
    for layer in linear_layers(fitness.model).values():
        (count,) = set((layer.weight.reshape(-1, 8) == 0).sum(1).tolist())
        counts.add(count)
    assert len(counts) > 1
    assert zero_share(fitness.model) <= 0.5


def test_an_allocation_with_equal_zeros_is_not_judged_again(fitness: AllocationFitness) -> None:
    first = fitness.prepare(formula(DEEPER))(0, 3)
    fitness.restore()
    again = fitness.prepare(formula("spread(mul(2, add(depth, 1)), 0.3)"))
    assert again(0, 3) == first
    # nothing was pruned or judged for it: the copy is still the dense model
    assert zero_share(fitness.model) < 1e-3


def test_windows_that_were_judged_before_are_known(fitness: AllocationFitness) -> None:
    start = fitness.prepare(formula(DEEPER))(0, 1)
    fitness.prepare(formula("spread(depth, -0.3)"))(0, 3)
    whole = fitness.prepare(formula(DEEPER))(0, 3)
    assert whole[:1] == start
    again = fitness.prepare(formula(DEEPER))
    assert again(1, 3) == whole[1:]
    assert again(1, 1) == []


def test_losses_do_not_depend_on_the_order_of_windows(fitness: AllocationFitness) -> None:
    late = fitness.prepare(formula(DEEPER))(2, 3)
    assert fitness.prepare(formula(DEEPER))(0, 3)[2:] == late
    assert late != fitness.prepare(formula("spread(depth, -0.3)"))(2, 3)


def test_the_fingerprint_tells_what_is_pruned(
    model: nn.Module, statistics: Statistics, judged: Tensor, fitness: AllocationFitness
) -> None:
    seen = fitness.fingerprint(formula(DEEPER))
    assert fitness.fingerprint(formula("spread(mul(3, depth), 0.3)")) == seen
    assert fitness.fingerprint(formula("spread(depth, 0.2)")) != seen
    metric = MetricFitness(model, statistics, judged, sparsity=0.5)
    seen = metric.fingerprint(WANDA)
    assert metric.fingerprint(parse("max(mul(abs(W), X), 1e-9)")) == seen
    assert metric.fingerprint(parse("abs(W)")) != seen


def test_the_fingerprint_of_a_pair_is_of_both(joint: JointFitness) -> None:
    seen = joint.fingerprint(pair(f"joint(W, {DEEPER})"))
    assert joint.fingerprint(pair("joint(W, spread(mul(3, depth), 0.3))")) == seen
    assert joint.fingerprint(pair("joint(W, spread(depth, 0.2))")) != seen
    assert joint.fingerprint(pair(f"joint(G, {DEEPER})")) != seen
    assert joint.fingerprint(pair(f"joint(add(W, 3), {DEEPER})")) == seen


def test_what_is_known_cannot_be_changed_from_outside(fitness: AllocationFitness) -> None:
    losses = fitness.prepare(formula(DEEPER))(0, 3)
    before = list(losses)
    losses.clear()
    assert fitness.prepare(formula(DEEPER))(0, 3) == before


def test_each_allocation_starts_from_dense_weights(
    joint: JointFitness, fitness: AllocationFitness, judged: Tensor
) -> None:
    (first,) = fitness.judge(formula(DEEPER), judged)
    fitness.judge(formula("spread(depth, -0.3)"), judged)
    (again,) = fitness.judge(formula(DEEPER), judged)
    assert torch.equal(first.losses, again.losses)
    before = joint.prepare(pair(f"joint({WANDA.text}, {DEEPER})"))(0, 3)
    joint.prepare(pair("joint(abs(W), 0)"))
    assert joint.prepare(pair(f"joint({WANDA.text}, {DEEPER})"))(0, 3) == before


def test_a_stale_trial_is_an_error(fitness: AllocationFitness, joint: JointFitness) -> None:
    trial = fitness.prepare(formula(DEEPER))
    fitness.prepare(formula("spread(depth, -0.3)"))
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)
    stale = joint.prepare(pair("joint(abs(W), 0)"))
    joint.restore()
    with pytest.raises(GppruneError, match="prepare it again"):
        stale(0, 1)


def test_a_stale_trial_does_not_disturb_the_one_after_it(
    fitness: AllocationFitness, judged: Tensor
) -> None:
    (wanted,) = fitness.judge(formula("spread(depth, -0.3)"), judged)
    stale = fitness.prepare(formula(DEEPER))
    fresh = fitness.prepare(formula("spread(depth, -0.3)"))
    first = fresh(0, 1)
    with pytest.raises(GppruneError, match="prepare it again"):
        stale(0, 1)
    assert first + fresh(1, 3) == wanted.losses.tolist()


def test_computed_sparsities_are_brought_to_the_budget_and_judged(
    model: nn.Module, statistics: Statistics, judged: Tensor, fitness: AllocationFitness
) -> None:
    names = list(linear_layers(model))
    zeros = fitness.exact({name: 0.2 + 0.5 * at / len(names) for at, name in enumerate(names)})
    sizes = torch.tensor([layer.weight.numel() for layer in linear_layers(model).values()])
    assert int(zeros.sum()) == round(0.5 * int(sizes.sum()))
    assert fitness.layer_sparsities(zeros) == pytest.approx((zeros / sizes).tolist())
    steps = (zeros / sizes).diff()
    assert steps.tolist() == pytest.approx([0.5 / len(names)] * len(steps), abs=1e-3)
    trial = fitness.prepare(formula(DEEPER))
    judgement = fitness.judge_zeros(zeros, judged)
    copied = pruned(model, wanda_scores(model, statistics), zeros, "row")
    same(judgement.losses.tolist(), window_losses(copied, judged))
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)


def test_another_sparsity_or_unit_is_as_a_fitness_of_its_own(
    model: nn.Module, statistics: Statistics, judged: Tensor, fitness: AllocationFitness
) -> None:
    tested = formula("spread(l2(S), 0.3)")
    first = fitness.prepare(tested)(0, 3)
    for sparsity, unit in ((0.7, None), (None, "block"), (0.3, "block")):
        other = fitness.under(sparsity=sparsity, unit=unit)
        own = AllocationFitness(
            model,
            statistics,
            judged,
            metric=WANDA,
            sparsity=sparsity or 0.5,
            unit=unit or "layer",
        )
        assert other.zeros(tested).tolist() == own.zeros(tested).tolist()
        assert other.prepare(tested)(0, 3) == own.prepare(tested)(0, 3)
        assert fitness.prepare(tested)(0, 3) == first
    trial = fitness.prepare(formula(DEEPER))
    fitness.under(unit="block").prepare(formula(DEEPER))
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_given_model_is_only_read(
    model: nn.Module, statistics: Statistics, judged: Tensor, dtype: torch.dtype | None
) -> None:
    before = copy.deepcopy(model.state_dict())
    alone = AllocationFitness(model, statistics, judged, metric=WANDA, sparsity=0.9, dtype=dtype)
    alone.prepare(formula("spread(kurtosis(S), 0.1)"))(0, 3)
    alone.judge(formula("threshold(S)"), judged)
    both = JointFitness(model, statistics, judged, sparsity=0.9, dtype=dtype)
    both.prepare(pair(f"joint({WANDA.text}, spread(l2(S), 0.1))"))(0, 3)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_restore_gives_the_dense_model(
    model: nn.Module, judged: Tensor, fitness: AllocationFitness
) -> None:
    fitness.prepare(formula(DEEPER))(0, 1)
    same(fitness.dense_losses(), window_losses(model, judged))
    assert zero_share(fitness.model) < 1e-3


def test_ranking_reports_its_progress(
    model: nn.Module, statistics: Statistics, judged: Tensor
) -> None:
    seen: list[tuple[str, int, int]] = []
    AllocationFitness(
        model,
        statistics,
        judged,
        metric=WANDA,
        sparsity=0.5,
        progress=lambda *step: seen.append(step),
    )
    count = len(linear_layers(model))
    assert seen == [("ranking the scores", done, count) for done in range(1, count + 1)]


# What cannot be judged


def test_a_metric_without_order_is_unfit(
    model: nn.Module, statistics: Statistics, judged: Tensor, joint: JointFitness
) -> None:
    first = next(iter(linear_layers(model)))
    with pytest.raises(Unfit, match="no terminal"):
        AllocationFitness(model, statistics, judged, metric=parse("3"), sparsity=0.5)
    with pytest.raises(Unfit, match=f"all scores of {first} are 0"):
        AllocationFitness(model, statistics, judged, metric=parse("min(abs(W), 0)"), sparsity=0.5)
    with pytest.raises(Unfit, match="no terminal"):
        joint.prepare(pair(f"joint(add(1, 2), {DEEPER})"))
    with pytest.raises(Unfit, match=f"all scores of {first} are 0"):
        joint.prepare(pair(f"joint(sub(W, W), {DEEPER})"))


def test_scores_that_are_not_numbers_are_unfit(
    model: nn.Module, statistics: Statistics, judged: Tensor
) -> None:
    second = list(linear_layers(model))[1]
    holed = dict(statistics)
    holed[second] = statistics[second] | {"X": statistics[second]["X"] * math.nan}
    with pytest.raises(Unfit, match=f"NaN among the scores of {second}"):
        AllocationFitness(model, holed, judged, metric=WANDA, sparsity=0.5)
    both = JointFitness(model, holed, judged, sparsity=0.5)
    with pytest.raises(Unfit, match=f"NaN among the scores of {second}"):
        both.prepare(pair(f"joint({WANDA.text}, {DEEPER})"))
    # scores that are no numbers, of which the allocation alone reads
    with pytest.raises(Unfit, match="not finite"):
        both.prepare(pair("joint(abs(W), spread(mean(mul(W, X)), 0.2))"))
    fitness = AllocationFitness(model, holed, judged, metric=parse("abs(W)"), sparsity=0.5)
    with pytest.raises(Unfit, match="not finite"):
        fitness.prepare(formula("spread(mean(mul(W, X)), 0.2)"))
    with pytest.raises(Unfit, match="not finite"):
        fitness.fingerprint(formula("spread(mean(mul(W, X)), 0.2)"))


def test_a_failed_prepare_ends_the_trial_before_it(joint: JointFitness) -> None:
    trial = joint.prepare(pair(f"joint({WANDA.text}, {DEEPER})"))
    with pytest.raises(Unfit):
        joint.prepare(pair("joint(sub(W, W), 0)"))
    with pytest.raises(GppruneError, match="prepare it again"):
        trial(0, 1)


def test_a_statistic_that_was_not_measured_is_a_usage_error(
    model: nn.Module, judged: Tensor, tiny_tokens: Tensor
) -> None:
    without = calibrate(model, samples_of(tiny_tokens, 4, 64, seed=0), ["X", "Y"])
    with pytest.raises(UsageError, match="reads G"):
        AllocationFitness(model, without, judged, metric=published["gblm"], sparsity=0.5)
    fitness = AllocationFitness(model, without, judged, metric=WANDA, sparsity=0.5)
    with pytest.raises(UsageError, match="reads G"):
        fitness.prepare(formula("spread(mean(G), 0.2)"))
    with pytest.raises(UsageError, match="reads G"):
        JointFitness(model, without, judged, sparsity=0.5).prepare(pair("joint(G, 0)"))


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 1.0}, {"sparsity": None}, {"sparsity": 0.5, "unit": "head"}]
)
def test_impossible_settings_are_usage_errors(
    model: nn.Module, statistics: Statistics, judged: Tensor, wrong: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        AllocationFitness(model, statistics, judged, metric=WANDA, **wrong)
    with pytest.raises(UsageError):
        JointFitness(model, statistics, judged, **wrong)
