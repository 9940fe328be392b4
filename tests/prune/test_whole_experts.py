"""Whole experts taken out of a model, against plain transformers that never chooses them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from short_texts import short_texts
from tiny_families import tiny
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gpprune.discover import evaluate_model, prune_to, recover_to
from gpprune.errors import GppruneError, UsageError
from gpprune.prune import Recipe, coverage, prune_model, shrink, units_to_go

FAMILIES = ("mixtral", "granitemoe", "qwen2moe", "qwen3moe", "gptoss", "deepseek", "qwen3next")
TOKENS = torch.randint(64, (8, 48), generator=torch.Generator().manual_seed(1))
TEXTS = short_texts(calibration_samples=4, window_length=64)


def mixture(family: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Any:
    """A tiny mixture whose experts and routers differ; none chooses groups of experts."""
    name, own = tiny_families.FAMILIES[family]
    fields |= {"n_group": 1} if family == "deepseek" else {}
    monkeypatch.setitem(tiny_families.FAMILIES, family, (name, {**own, **fields}))
    model = tiny(family)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """By the name of the list of experts that each chooses of."""
    found = {}
    for name, module in model.named_modules():
        if "Router" in type(module).__name__:
            found[f"{name.rpartition('.')[0]}.experts"] = module
    return found


class _NeverChosen(TorchFunctionMode):
    """Some experts have minus infinity as their router's logit."""

    def __init__(self, model: nn.Module, gone: dict[str, tuple[int, ...]]) -> None:
        self._gone = {id(m.weight): list(gone[n]) for n, m in routers(model).items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is functional.linear and id(args[1]) in self._gone:
            found[..., self._gone[id(args[1])]] = -math.inf
        return found


def stacks(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.ndim == 3 and "experts" in n}


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_go_to_the_experts_that_stay(
    family: str,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense = mixture(family, monkeypatch)
    dense.resize_token_embeddings(512)
    dense.save_pretrained(tmp_path / "in")
    tiny_tokenizer.save_pretrained(tmp_path / "in")
    before = stacks(dense)
    lost = sum(m.weight.shape[1] for m in routers(dense).values())
    lost += sum(stack[0].numel() for stack in before.values())  # one of each mixture
    sparsity = math.ceil(1000 * lost / coverage(dense).size) / 1000
    recipe = Recipe(pattern="experts", sparsity=sparsity)
    report = prune_to(tmp_path / "out", recipe, model=str(tmp_path / "in"), texts=TEXTS)
    assert report.removed is not None
    assert all(len(places) == 1 for places in report.removed.gone.values())
    assert report.removed.gone.keys() == routers(dense).keys()

    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    after = stacks(small)
    for name, stack in before.items():
        stays = [n for n in range(4) if n not in report.removed.gone[name.rpartition(".")[0]]]
        assert torch.equal(after[name], stack[stays])
    assert report.removed.weights == lost
    with torch.no_grad(), _NeverChosen(dense, dict(report.removed.gone)):
        wanted = dense(TOKENS).logits
    with torch.no_grad():
        found = small(TOKENS).logits
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())

    texts = short_texts(windows=2, window_length=32)
    judged, _ = evaluate_model(str(tmp_path / "out"), texts=texts, dtype="float32")
    assert math.isfinite(judged.evaluation.figure)
    again = prune_to(
        tmp_path / "half", Recipe(sparsity=0.5), model=str(tmp_path / "out"), texts=TEXTS
    )
    assert again.block_zeros == again.coverage.size // 2
    trained = recover_to(
        tmp_path / "trained",
        str(tmp_path / "out"),
        texts=short_texts(calibration_samples=2, window_length=32),
    )
    assert len(trained.losses) == 1


@pytest.mark.parametrize("sparsity", [0.21, 0.3, 0.41, 0.5])
def test_as_many_go_as_fit(sparsity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral", monkeypatch)
    matrices = [p for n, p in model.named_parameters() if "layers" in n and p.ndim > 1]
    size = sum(p.numel() for p in matrices)
    report = prune_model(model, Recipe(pattern="experts", sparsity=sparsity), TOKENS)
    left = sum(p.numel() for n, p in model.named_parameters() if "layers" in n and p.ndim > 1)
    removed = report.removed
    assert removed is not None
    assert (removed.weights, removed.size) == (size - left, size)
    one = removed.weights // len(next(iter(removed.gone.values())))
    assert removed.weights <= sparsity * size < removed.weights + one
    assert report.zeros == 0


def test_the_cheapest_of_each_mixture_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral", monkeypatch)
    wanted = {}
    for name, layer in model.named_modules():
        if name.endswith("mlp.experts"):
            costs = layer.gate_up_proj.double().abs().sum((1, 2))
            costs += layer.down_proj.double().abs().sum((1, 2))
            wanted[name] = tuple(costs.argsort()[:2].sort().values.tolist())
    report = prune_model(
        model, Recipe(metric="magnitude", pattern="experts", sparsity=0.45), TOKENS
    )
    assert report.removed is not None
    assert report.removed.gone == wanted


def test_an_expert_costs_by_the_tokens_that_came_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wanda's scores, summed, from the routers' own choices in float64."""
    model = mixture("mixtral", monkeypatch)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}

    def note(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        states, chosen = inputs[0].double(), inputs[1]
        for expert in range(4):
            own = states[(chosen == expert).any(1)]
            gate, rest = (own @ module.gate_up_proj[expert].double().t()).chunk(2, 1)
            inner = functional.silu(gate) * rest
            first, second = own.square().sum(0), inner.square().sum(0)
            joined = torch.cat([first, second])
            key = f"{name}.{expert}"
            sums[key] = sums.get(key, torch.zeros_like(joined)) + joined
            counts[key] = counts.get(key, torch.zeros(())) + len(own)

    hooks = [
        module.register_forward_pre_hook(lambda m, i, name=name: note(name, m, i))
        for name, module in model.named_modules()
        if name.endswith("mlp.experts")
    ]
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    model.requires_grad_(False)
    wanted: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if not name.endswith("mlp.experts"):
            continue
        costs = []
        for expert in range(4):
            first, second = sums[f"{name}.{expert}"].sqrt().tensor_split([16])
            cost = (module.gate_up_proj[expert].double().abs() * first).sum()
            costs.append(float(cost + (module.down_proj[expert].double().abs() * second).sum()))
            assert counts[f"{name}.{expert}"] >= 32  # or it went first
        wanted[name] = (min(range(4), key=costs.__getitem__),)
    report = prune_model(model, Recipe(pattern="experts", sparsity=0.25), TOKENS)
    assert report.removed is not None
    assert report.removed.gone == wanted


def test_an_expert_that_no_token_reaches_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("gptoss", monkeypatch)
    with torch.no_grad():
        for module in routers(model).values():
            module.bias[2] = -1e4
        for stack in stacks(model).values():
            stack[2] *= 100
    report = prune_model(model, Recipe(pattern="experts", sparsity=0.25), TOKENS)
    assert report.removed is not None
    assert set(report.removed.gone.values()) == {(2,)}
    assert any("first to be taken out" in sentence for sentence in report.sentences)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sparsity": 0.1}, r"one of 4 experts .* give at least 0\.205057"),
        ({"sparsity": 0.7}, r"more than 2 of 4 .* goes to 2 of them: give less than 0\.615"),
        ({"sparsity": 0.3, "update": "refit"}, "update 'refit'"),
        ({"sparsity": 0.3, "shots": 2}, "2 shots"),
        ({"sparsity": 0.3, "recover": 1}, "gpprune recover"),
        ({"sparsity": 0.3, "synthetic_samples": 1}, "synthetic samples"),
        ({"sparsity": 0.3, "cap": 0.5}, r"a cap of 0\.5"),
        ({"sparsity": 0.3, "idle_experts": "dense"}, "idle experts"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    fields: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture("mixtral", monkeypatch)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=said):
        prune_model(model, Recipe(pattern="experts", **fields), TOKENS)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("llama", "no experts that can be taken out"),
        ("llama4", "no experts that can be taken out"),
        ("deepseek", "chooses groups of experts"),  # two groups of two
    ],
)
def test_models_without_such_experts_are_refused(family: str, said: str) -> None:
    with pytest.raises(GppruneError, match=said):
        prune_model(tiny(family), Recipe(pattern="experts", sparsity=0.3), TOKENS)


def test_a_model_that_does_not_run_with_so_few_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = mixture("deepseek", monkeypatch, num_experts_per_tok=1)  # it adds two scores a group
    state, config = copy.deepcopy(model.state_dict()), copy.deepcopy(model.config.to_dict())
    with torch.no_grad():
        before = model(TOKENS).logits
    with pytest.raises(GppruneError, match="does not run with 1 experts"):
        prune_model(model, Recipe(pattern="experts", sparsity=0.3), TOKENS)
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.allclose(model(TOKENS).logits, before, atol=1e-5)


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "gptoss"])
def test_the_loss_of_the_routers_knows_how_many_are_left(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixture(family, monkeypatch, output_router_logits=True)
    prune_model(model, Recipe(pattern="experts", sparsity=0.3), TOKENS)
    plain = AutoModelForCausalLM.from_config(model.config)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, wanted = (each(TOKENS, labels=TOKENS).aux_loss for each in (model, plain.eval()))
    assert torch.allclose(found, wanted)


def test_numbers_that_count_no_experts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral", monkeypatch)
    for router in routers(model).values():
        router.top_k = 1  # type: ignore[assignment]
    prune_model(model, Recipe(pattern="experts", sparsity=0.3), TOKENS)
    assert all(router.top_k == 1 for router in routers(model).values())


def test_where_tokens_go_to_all_none_can_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral", monkeypatch, num_local_experts=2)
    with pytest.raises(UsageError, match="goes to all 2 experts"):
        prune_model(model, Recipe(pattern="experts", sparsity=0.001), TOKENS)


def test_after_a_shrink_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture("mixtral", monkeypatch)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight[:, :8] = 0
    shrink(model)
    with pytest.raises(GppruneError, match="take experts out first"):
        prune_model(model, Recipe(pattern="experts", sparsity=0.3), TOKENS)


def test_it_is_no_pattern_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(pattern="experts", sparsity=0.3)
    with pytest.raises(UsageError, match="leaves no zeros"):
        units_to_go(mixture("mixtral", monkeypatch), recipe, {})
