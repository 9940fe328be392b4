"""Pruning and judging where the model is not on the CPU, beside the same on the CPU.

Without a GPU they run in a process of their own, on a stand-in: autograd knows of a device only if
it is there before the first gradient.
"""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from stand_in_device import register, stand_in
from torch import Tensor, nn

from gpprune.discover import MetricGoal, Texts, prune_to
from gpprune.discover.workbench import Workbench
from gpprune.evals import RECIPE, evaluate
from gpprune.primitives import STATISTICS, metric
from gpprune.prune import (
    UPDATES,
    Recipe,
    calibrate,
    linear_layers,
    load_model,
    prune_model,
    reconstruct,
    use_device,
)
from gpprune.prune.measure.synthetic import synthetic_samples

STANDING_IN = "GPPRUNE_TESTS_STAND_IN"
if STANDING_IN in os.environ:
    register()

on_a_device = pytest.mark.gpu if STANDING_IN not in os.environ else pytest.mark.timeout(300)


@pytest.fixture
def device() -> Iterator[str]:
    if STANDING_IN in os.environ:
        with stand_in() as name:
            yield name
    elif torch.cuda.is_available():
        yield "cuda"
    else:
        pytest.skip("there is no CUDA device")


@pytest.mark.skipif(STANDING_IN in os.environ, reason="this is that process")
def test_all_of_it_on_a_stand_in() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", __file__],
        env={**os.environ, STANDING_IN: "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-1000:]
    assert re.search(r"2[0-9] passed, 2 skipped", ran.stdout), ran.stdout[-500:]


@pytest.fixture(scope="module")
def dense(tiny_model_dir: Path) -> nn.Module:
    return load_model(str(tiny_model_dir), device="cpu").model


@pytest.fixture(scope="module")
def tokens(tiny_tokens: Tensor) -> Tensor:
    return tiny_tokens[: 6 * 48].view(6, 48)


def taken(model: nn.Module, device: str) -> nn.Module:
    return copy.deepcopy(model).to(device)


@pytest.mark.skipif(STANDING_IN not in os.environ, reason="there is no stand-in here")
def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with stand_in() as name:
        there, here = torch.ones(3, 4, device=name), torch.ones(3, 4)
        assert torch.equal((there + 1).cpu(), here + 1)
        assert float((there + torch.tensor(1.0))[0, 0]) == 2  # a number may lie anywhere
        with pytest.raises(RuntimeError, match="standin and of the CPU"):
            there + here
        with pytest.raises(RuntimeError, match="standin and of the CPU"):
            here[torch.zeros(2, dtype=torch.long, device=name)]
    with pytest.raises(RuntimeError):
        torch.ones(3, device=name)


@on_a_device
def test_statistics_are_measured_there(dense: nn.Module, tokens: Tensor, device: str) -> None:
    names = list(STATISTICS)
    wanted = calibrate(dense, tokens, names)
    model = taken(dense, device)
    for layer, found in calibrate(model, tokens.to(device), names).items():
        assert set(found) == set(names)
        for name in names:
            there = found[name]
            assert there.device.type == linear_layers(model)[layer].weight.device.type
            torch.testing.assert_close(there.cpu(), wanted[layer][name], rtol=1e-3, atol=1e-7)


@on_a_device
@pytest.mark.parametrize(
    ("order", "update"),
    [
        ("dense", "none"),
        ("sequential", "none"),
        *product(["dense"], sorted(UPDATES.keys() - {"none"})),
        *product(["corrected"], ["admm", "kron-admm", "sparsegpt"]),
    ],
)
def test_a_model_is_pruned_there_as_on_the_cpu(
    dense: nn.Module, tokens: Tensor, device: str, update: str, order: str
) -> None:
    recipe = Recipe(metric="kron-obd", sparsity=0.5, pattern="model", update=update)
    figures, zeros = [], []
    for where in ("cpu", device):
        model = taken(dense, where)
        report = prune_model(model, recipe, tokens[:4], order=order)
        figures.append(evaluate(model, tokens[4:]).figure)
        zeros.append(report.zeros)
    assert zeros[0] == zeros[1]
    assert figures[1] == pytest.approx(figures[0], rel=2e-2)


@on_a_device
@pytest.mark.parametrize(
    "change", [{"shots": 3}, {"allocation": "owl"}, {"allocation": "besa"}, {"recover": 2}]
)
def test_shots_and_allocations_work_there(
    dense: nn.Module, tokens: Tensor, device: str, change: dict[str, object]
) -> None:
    recipe = Recipe.make(metric="wanda", sparsity=0.5, pattern="layer", update="refit", **change)
    model = taken(dense, device)
    report = prune_model(model, recipe, tokens[:4])
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)


@on_a_device
def test_it_is_trained_there(dense: nn.Module, tokens: Tensor, device: str) -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5, recover=2)
    figures = []
    for where in ("cpu", device):
        model = taken(dense, where)
        report = prune_model(model, recipe, tokens[:4])
        (shot,) = report.shots
        assert report.sparsity == pytest.approx(0.5, abs=1e-3)
        figures += [shot.after, shot.recovered]
    assert figures[2:] == pytest.approx(figures[:2], rel=1e-3)
    assert abs(figures[1] - figures[0]) > 1e-4 * figures[0]


@on_a_device
def test_a_model_is_streamed_there(
    tiny_model_dir: Path,
    text_file: Path,
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a stand-in is one of this thread
    texts = Texts(calibration_text=str(text_file), calibration_samples=4, window_length=48)
    recipe, found = Recipe(metric="wanda", sparsity=0.5), []
    try:
        for where, stream in (("cpu", False), (device, True)):
            use_device(where)
            out = tmp_path / where.replace(":", "-")
            prune_to(out, recipe, model=str(tiny_model_dir), texts=texts, stream=stream)
            found.append(linear_layers(load_model(str(out), device="cpu").model))
    finally:
        use_device("auto")
    for name, layer in found[0].items():
        other = found[1][name].weight
        assert int((other == 0).sum()) == int((layer.weight == 0).sum())
        assert (other == layer.weight).float().mean() > 0.99  # but where scores nearly tie


@on_a_device
def test_blocks_are_reconstructed_there(dense: nn.Module, tokens: Tensor, device: str) -> None:
    losses = []
    for where in ("cpu", device):
        model = taken(dense, where)
        prune_model(model, Recipe(metric="wanda", sparsity=0.5), tokens[:4])
        losses.append(reconstruct(model, taken(dense, where), tokens[:4], 2))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(STANDING_IN in os.environ, reason="the stand-in cannot generate text")
def test_a_model_writes_there_as_it_predicts(dense: nn.Module, tokens: Tensor, device: str) -> None:
    model = taken(dense, device)
    model.lm_head.register_forward_hook(lambda _, inputs, logits: 1e4 * logits)
    before = torch.cuda.get_rng_state()
    written = synthetic_samples(model, tokens.to(device), 3)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert written.device.type == torch.device(device).type
    logits = model(written).logits[:, 23:-1]
    assert (logits.argmax(-1) == written[:, 24:]).float().mean() > 0.9  # of near ties either


@on_a_device
@pytest.mark.parametrize("draft", [None, "none", RECIPE])
def test_a_search_judges_there_as_on_the_cpu(
    tiny_model_dir: Path, text_file: Path, device: str, draft: str | None
) -> None:
    text = str(text_file)
    texts = Texts(text, text, windows=2, window_length=48, calibration_samples=4)
    goal = MetricGoal(
        *(texts, str(tiny_model_dir), 0.5, "model", "float32"),
        update="admm",
        order="corrected",
        draft=draft,
    )
    losses = []
    for where in ("cpu", device):
        loaded = load_model(goal.model, device=where)
        fitness = goal.fitness(Workbench(loaded, texts, dtype="float32", names=goal.statistics))
        formulas = [goal.canonical(metric(name)) for name in ("kron-obd", "wanda")]
        losses.append([fitness.prepare(formula)(0, 2) for formula in formulas])
    for ours, wanted in zip(losses[1], losses[0], strict=True):
        assert ours == pytest.approx(wanted, rel=1e-2)
