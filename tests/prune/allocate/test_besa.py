from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import FrameType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import LinearLayer, blocks, calibrate, linear_layers, load_model
from gpprune.prune.allocate.besa import besa_sparsities, keep_probability


@pytest.fixture(params=["tiny_model_dir", "tiny_gpt2_dir"])
def folder(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def sequences(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 8 * 64].view(8, 64)


class Wanda:
    """A layer's scores |W| X, from statistics measured once."""

    def __init__(self, model: nn.Module, tokens: Tensor) -> None:
        self.statistics = calibrate(model, tokens, ["X"])

    def __call__(self, layer: LinearLayer) -> Tensor:
        return layer.weight.abs() * self.statistics[layer.name]["X"]


class Snapshot:
    """What a model consists of, to be compared later bit for bit."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._own = dict(model.named_parameters())
        self._values = {name: value.clone() for name, value in model.state_dict().items()}

    def check(self) -> None:
        after = self._model.state_dict()
        assert after.keys() == self._values.keys()
        assert all(torch.equal(value, self._values[name]) for name, value in after.items())
        parameters = dict(self._model.named_parameters())
        assert parameters.keys() == self._own.keys()
        assert all(parameters[name] is own for name, own in self._own.items())
        assert all(own.grad is None and own.requires_grad for own in self._own.values())


def masks(model: nn.Module, score: Wanda, sparsities: dict[str, float]) -> dict[str, Tensor]:
    """The floor(n s) lowest of every row by a plain sort, True where a weight goes."""
    found = {}
    for name, layer in linear_layers(model).items():
        count = math.floor(sparsities[name] * layer.in_features)
        order = torch.sort(score(layer), dim=1, stable=True).indices[:, :count]
        found[name] = torch.zeros(layer.weight.shape, dtype=torch.bool).scatter(1, order, True)
    return found


def outputs_of(model: nn.Module, tokens: Tensor) -> list[Tensor]:
    """Every block's output on the whole batch of tokens, as the model itself computes it."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append((output if isinstance(output, Tensor) else output[0]).double())

    handles = [block.register_forward_hook(keep) for block in blocks(model)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return outputs


def block_errors(
    folder: str, score: Wanda, sparsities: dict[str, float], tokens: Tensor
) -> list[float]:
    """Each block's relative squared error on what the pruned blocks before it have made."""
    model = load_model(folder).model
    goes = masks(model, score, sparsities)
    errors = []
    for index in range(len(blocks(model))):
        dense = outputs_of(model, tokens)[index]
        for name, layer in linear_layers(model).items():
            if layer.block == index:
                layer.weight.masked_fill_(goes[name], 0)
        pruned = outputs_of(model, tokens)[index]
        errors.append(float((pruned - dense).square().sum() / dense.square().sum()))
    return errors


def zeros(model: nn.Module, sparsities: dict[str, float], block: int) -> int:
    return sum(
        layer.out_features * math.floor(sparsities[name] * layer.in_features)
        for name, layer in linear_layers(model).items()
        if layer.block == block
    )


@given(
    logits=st.lists(st.floats(-30, 30), min_size=101, max_size=101),
    size=st.integers(1, 700),
)
@settings(max_examples=60)
def test_the_keep_probability_is_its_definition(logits: list[float], size: int) -> None:
    exponentials = [math.exp(logit) for logit in logits]
    beta = [value / math.fsum(exponentials) for value in exponentials]
    found = keep_probability(torch.tensor(beta, dtype=torch.float64), size)
    assert found.shape == (size,) and found.dtype == torch.float64
    for rank in {0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)):
        goes = math.fsum(beta[d] for d in range(101) if math.floor(size * Fraction(d, 100)) > rank)
        assert found[rank].item() == pytest.approx(1.0 - goes, abs=1e-12)


def test_the_keep_probability_hands_the_gradient_to_the_candidates() -> None:
    beta = torch.full((101,), 1 / 101, dtype=torch.float64, requires_grad=True)
    keep_probability(beta, 50)[20].backward()
    # Rank 20 of 50 stays under the candidates up to 0.41, which prune at most 20 of 50.
    assert beta.grad is not None
    assert torch.equal(beta.grad, (torch.arange(101) <= 41).double())


@pytest.mark.parametrize("target", [0.02, 0.3, 0.5, 0.75, 0.97])
def test_every_block_meets_the_target(folder: str, sequences: Tensor, target: float) -> None:
    model = load_model(folder).model
    learned = besa_sparsities(model, Wanda(model, sequences), sequences[:3], target)
    layers = linear_layers(model)
    assert list(learned) == list(layers)
    assert all(0.0 <= value < 1.0 for value in learned.values())
    assert max(learned.values()) - min(learned.values()) > 0.001
    for index in range(len(blocks(model))):
        sizes = {n: layer.weight.numel() for n, layer in layers.items() if layer.block == index}
        mean = sum(learned[name] * size for name, size in sizes.items()) / sum(sizes.values())
        assert target <= mean <= target + 1e-6


@pytest.mark.parametrize("target", [0.4, 0.7])
def test_blocks_are_reproduced_better_than_under_uniform(
    folder: str, sequences: Tensor, target: float
) -> None:
    model = load_model(folder).model
    score = Wanda(model, sequences)
    learned = besa_sparsities(model, score, sequences, target)
    # Counts of weights are rounded down: uniform gets no more zeros in any block than was learned.
    uniform = dict.fromkeys(learned, target)
    while any(zeros(model, uniform, i) > zeros(model, learned, i) for i in range(2)):
        uniform = {name: value - 0.005 for name, value in uniform.items()}
    ours = block_errors(folder, score, learned, sequences)
    theirs = block_errors(folder, score, uniform, sequences)
    assert all(a < 0.95 * b for a, b in zip(ours, theirs, strict=True))


class _Chain(nn.Module):
    """Two blocks of two linear layers each, small enough to be trained by the definition."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6, bias=False)) for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.embed(tokens)
        for block in self.blocks:
            state = block(state)
        return state


def tilted(logits: list[Tensor], sizes: list[int], target: float) -> list[Tensor]:
    """Logits plus the one slope times p_d that makes the weighted mean sparsity the target."""
    p = torch.linspace(0, 1, 101, dtype=torch.float64)

    def excess(slope: float) -> float:
        means = [float((one + slope * p).softmax(0) @ p) for one in logits]
        return sum(m * n for m, n in zip(means, sizes, strict=True)) / sum(sizes) - target

    low, high = -500.0, 500.0
    while high - low > 1e-11:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return [one + low * p for one in logits]


def mask_by_definition(logits: Tensor, ranks: Tensor) -> Tensor:
    """The straight-through mask of a layer with the ranks ``[out, in]``, in float64."""
    n = ranks.shape[1]
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    beta = logits.softmax(0)
    goes = torch.tensor([[d * n // 100 > k for k in range(n)] for d in range(101)]).double()
    keep = (1 - beta @ goes)[ranks]
    hard = (ranks >= math.floor(n * float((beta @ p).detach()))).double()
    return hard - keep.detach() + keep


def besa_by_definition(
    model: _Chain, scores: dict[str, Tensor], tokens: Tensor, target: float
) -> dict[str, float]:
    """One epoch of BESA on the chain in float64, written out."""
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    learned = {}
    states = [model.embed(sequence).detach().double() for sequence in tokens]
    for index, block in enumerate(model.blocks):
        first, second = (block.get_submodule(place) for place in "02")
        weights = [first.weight.detach().double(), second.weight.detach().double()]
        bias = first.bias.detach().double()
        names = [f"blocks.{index}.{place}" for place in "02"]
        ranks = [scores[name].argsort(dim=1, stable=True).argsort(dim=1) for name in names]
        sizes = [weight.numel() for weight in weights]

        def run(
            state: Tensor, masks: list[Tensor], weights: list[Tensor] = weights, bias: Tensor = bias
        ) -> Tensor:
            inner = torch.tanh(state @ (weights[0] * masks[0]).T + bias)
            return inner @ (weights[1] * masks[1]).T

        logits = tilted([torch.zeros(101, dtype=torch.float64)] * 2, sizes, target)
        logits = [one.requires_grad_() for one in logits]
        adam = torch.optim.Adam(logits, lr=0.1)
        penalty = None
        for state in states:
            dense = run(state, [torch.ones_like(weight) for weight in weights])
            pruned = run(state, list(map(mask_by_definition, logits, ranks)))
            error = (pruned - dense).square().sum() / dense.square().sum()
            penalty = 200 * error.item() if penalty is None else penalty
            means = [one.softmax(0) @ p for one in logits]
            alpha = (means[0] * sizes[0] + means[1] * sizes[1]) / sum(sizes)
            adam.zero_grad()
            (error + penalty * (alpha - target) ** 2).backward()
            adam.step()
        logits = tilted([one.detach() for one in logits], sizes, target)
        learned |= {n: float(one.softmax(0) @ p) for n, one in zip(names, logits, strict=True)}
        states = [run(state, list(map(mask_by_definition, logits, ranks))) for state in states]
    return learned


@pytest.mark.parametrize("target", [0.35, 0.45, 0.8])
def test_training_is_the_papers(target: float) -> None:
    generator = torch.Generator().manual_seed(3)
    model = _Chain()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    layers = linear_layers(model)
    scores = {n: torch.rand(x.weight.shape, generator=generator) for n, x in layers.items()}
    tokens = torch.randint(16, (10, 12), generator=generator)
    expected = besa_by_definition(model, scores, tokens, target)
    found = besa_sparsities(model, lambda layer: scores[layer.name], tokens, target)
    assert found == pytest.approx(expected, abs=1e-4)
    # The comparison tells: the layers have come apart, and the blocks differ.
    assert max(found.values()) - min(found.values()) > 0.02


def test_more_epochs_learn_more_in_half_precision_too(folder: str, sequences: Tensor) -> None:
    model = load_model(folder, dtype=torch.bfloat16).model
    score = Wanda(model, sequences)
    spread = []
    for epochs in (1, 4):
        learned = besa_sparsities(model, score, sequences[:2], 0.5, epochs=epochs)
        spread.append(max(learned.values()) - min(learned.values()))
    assert spread[1] > spread[0] > 0.001


def test_the_same_calibration_gives_the_same_sparsities(folder: str, sequences: Tensor) -> None:
    first, second = load_model(folder).model, load_model(folder).model
    score = Wanda(first, sequences)
    torch.manual_seed(1)
    ours = besa_sparsities(first, score, sequences[:3], 0.5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert besa_sparsities(second, score, sequences[:3], 0.5) == ours
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_left_as_it_was(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model.train()
    model.config.use_cache = True
    before = Snapshot(model)
    besa_sparsities(model, Wanda(model, sequences), sequences[:2], 0.5)
    before.check()
    assert model.training and model.config.use_cache is True
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert "forward" not in module.__dict__


@pytest.mark.parametrize("call", [1, 2, 5, 9, 14, 40, 200, 333])
def test_an_interrupt_anywhere_leaves_the_model_as_it_was(
    folder: str, sequences: Tensor, call: int
) -> None:
    model = load_model(folder).model
    score = Wanda(model, sequences)
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt), interrupting("torch/nn/utils/", call):
        besa_sparsities(model, score, sequences[:2], 0.5)
    before.check()


@contextmanager
def interrupting(where: str, call: int) -> Iterator[None]:
    """Ctrl-C at the given call of a function whose file's path contains ``where``."""
    left = call

    def on_event(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event == "call" and where in frame.f_code.co_filename:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_progress_counts_blocks_and_scores_are_asked_for_once(
    folder: str, sequences: Tensor
) -> None:
    model = load_model(folder).model
    score = Wanda(model, sequences)
    asked: list[str] = []
    said: list[tuple[str, int, int]] = []

    def scores(layer: LinearLayer) -> Tensor:
        asked.append(layer.name)
        return score(layer)

    besa_sparsities(model, scores, sequences[:2], 0.5, progress=lambda *report: said.append(report))
    assert asked == list(linear_layers(model))
    assert [report for report in said if report[0] == "learning the allocation"] == [
        ("learning the allocation", 1, 2),
        ("learning the allocation", 2, 2),
    ]


def test_nothing_to_prune_is_nothing_to_learn(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model
    learned = besa_sparsities(model, Wanda(model, sequences), sequences, 0.0)
    assert learned == dict.fromkeys(linear_layers(model), 0.0)


@pytest.mark.parametrize("target", [-0.1, 1.0, 1.5, float("nan")])
def test_a_bad_target_is_named(folder: str, sequences: Tensor, target: float) -> None:
    model = load_model(folder).model
    with pytest.raises(UsageError, match=str(target)):
        besa_sparsities(model, lambda layer: layer.weight, sequences, target)


def test_bad_tokens_and_epochs_are_named(folder: str, sequences: Tensor) -> None:
    model = load_model(folder).model
    for tokens in (sequences[:0], sequences[:, :1], sequences[0], sequences.float()):
        with pytest.raises(UsageError, match="tokens"):
            besa_sparsities(model, lambda layer: layer.weight, tokens, 0.5)
    with pytest.raises(UsageError, match="0 epochs"):
        besa_sparsities(model, lambda layer: layer.weight, sequences, 0.5, epochs=0)


def test_bad_scores_name_the_layer(tiny_gpt2_dir: Path, sequences: Tensor) -> None:
    model = load_model(str(tiny_gpt2_dir)).model
    before = Snapshot(model)
    with pytest.raises(UsageError, match=r"h\.0\.attn\.c_attn.*\[48, 144\].*\[144, 48\]"):
        besa_sparsities(model, lambda layer: layer.parameter.detach(), sequences, 0.5)
    with pytest.raises(GppruneError, match=r"h\.0\.attn\.c_attn.*NaN"):
        besa_sparsities(model, lambda layer: layer.weight * float("nan"), sequences, 0.5)
    before.check()


def test_a_damaged_block_is_named(tiny_model_dir: Path, sequences: Tensor) -> None:
    model = load_model(str(tiny_model_dir)).model
    model.model.layers[1].input_layernorm.weight.data[3] = float("nan")
    with pytest.raises(GppruneError, match="block 1 is nan"):
        besa_sparsities(model, lambda layer: layer.weight.abs(), sequences, 0.5)
