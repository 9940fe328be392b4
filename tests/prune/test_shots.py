"""Pruning in several shots: growth, budgets, caps, records, and going on after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from tiny_families import tiny
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gpprune.errors import GppruneError, UsageError
from gpprune.prune import (
    SCHEDULES,
    Recipe,
    check_shots,
    forget_shots,
    linear_layers,
    prune_model,
)
from gpprune.prune.allocate.budget import total_zeros
from gpprune.prune.once import prune_once
from gpprune.prune.stage import Stage


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: layer.weight.clone() for name, layer in linear_layers(model).items()}


def _wide(features: int) -> nn.Module:
    """A model whose layers have several blocks of columns."""
    config = LlamaConfig(
        hidden_size=features,
        intermediate_size=2 * features,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("pattern", "sparsity", "allocation"),
    [
        ("row", 0.5, "uniform"),
        ("layer", 0.6, "atp(0.3)"),
        ("layer", 0.6, "global"),
        ("model", 0.6, "uniform"),
        ("2:4", None, "uniform"),
        ("N:8", 0.5, "atp(0.2)"),
    ],
)
@pytest.mark.parametrize("update", ["none", "least-squares", "refit", "sparsegpt-blocks"])
@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_zeros_only_grow_to_the_recipe_s_number(
    sequences: Tensor,
    pattern: str,
    sparsity: float | None,
    allocation: str,
    update: str,
    order: str,
) -> None:
    recipe = Recipe.make(
        metric="wanda", pattern=pattern, sparsity=sparsity, allocation=allocation, update=update
    )
    model, held, counts = tiny("llama"), {}, []
    for part in recipe.model_copy(update={"shots": 3}).parts:
        before = held
        held = prune_once(
            model.eval(), recipe, sequences, order, lambda *_: None, Stage(part, before)
        ).masks
        for name, layer in linear_layers(model).items():
            assert torch.equal(held[name], layer.weight == 0)
            if before:
                assert bool((held[name] | ~before[name]).all()), name
        counts.append(sum(int(mask.sum()) for mask in held.values()))
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[2]
    plain = tiny("llama")
    report = prune_model(
        plain, recipe.model_copy(update={"update": "none"}), sequences, order="dense"
    )
    assert counts[-1] == report.zeros
    if pattern == "2:4":
        for mask in held.values():
            assert (mask.reshape(-1, 4).sum(1) == 2).all()


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_shot_meets_its_part_across_the_model(sequences: Tensor, schedule: str) -> None:
    recipe = Recipe(
        metric="kron-obd", pattern="model", sparsity=0.6, update="refit", shots=3, schedule=schedule
    )
    report = prune_model(tiny("llama"), recipe, sequences, order="dense")
    weights = report.size
    wanted = [total_zeros(0.6 * part, weights) for part in recipe.parts]
    assert [shot.zeros for shot in report.shots] == wanted
    assert report.zeros == wanted[-1] == total_zeros(0.6, weights)
    for before, after in zip(report.shots, report.shots[1:], strict=False):
        assert after.before == before.after
    assert all(shot.predicted is not None and shot.predicted > 0 for shot in report.shots)
    assert json.loads(json.dumps(report.as_dict()))["shots"][0]["zeros"] == wanted[0]


def test_a_cap_holds_layers_back(sequences: Tensor) -> None:
    recipe = Recipe(metric="magnitude", pattern="model", sparsity=0.6, shots=3, cap=0.25)
    model, held = tiny("llama"), {}
    # one layer would go first, and whole
    first = next(iter(linear_layers(model).values()))
    first.write(first.weight * 1e-6)
    for part in recipe.parts:
        before = held
        held = prune_once(
            model.eval(), recipe, sequences, "dense", lambda *_: None, Stage(part, before)
        ).masks
        for name, mask in held.items():
            gone = int(before[name].sum()) if before else 0
            assert int(mask.sum()) - gone <= 0.25 * mask.numel()
    zeros = sum(int(mask.sum()) for mask in held.values())
    assert zeros == total_zeros(0.6, sum(mask.numel() for mask in held.values()))
    with pytest.raises(UsageError, match=r"the cap 0\.1 is less"):
        Recipe(metric="magnitude", pattern="model", sparsity=0.6, shots=3, cap=0.1)


@pytest.mark.parametrize(
    ("pattern", "inputs", "metric"),
    [
        ("row", 300, "wanda"),
        ("layer", 300, "wanda"),
        ("model", 300, "wanda"),
        ("3:5", 300, "wanda"),
        ("2:4", 300, "wanda"),
        ("1:150", 300, "wanda"),
        ("layer", 300, "log(abs(W))"),
    ],
)
def test_what_blocks_of_columns_have_pruned_stays_out(
    sequences: Tensor, pattern: str, inputs: int, metric: str
) -> None:
    sparsity = None if ":" in pattern else 0.617
    recipe = Recipe.make(
        metric=metric, pattern=pattern, sparsity=sparsity, update="sparsegpt-blocks", shots=7
    )
    model, held = _wide(inputs), {}
    for part in recipe.parts:
        before = held
        stage = Stage(part, before)
        held = prune_once(model, recipe, sequences, "dense", lambda *_: None, stage).masks
        for name, mask in before.items():
            assert bool((held[name] | ~mask).all()), name


@pytest.mark.parametrize("allocation", ["uniform", "0"])
def test_a_fixed_pattern_is_reached_by_its_schedule(sequences: Tensor, allocation: str) -> None:
    recipe = Recipe.make(
        metric="wanda", pattern="2:4", allocation=allocation, shots=4, schedule="cosine"
    )
    report = prune_model(tiny("llama"), recipe, sequences)
    for shot, part in zip(report.shots, recipe.parts, strict=True):
        assert shot.sparsity == pytest.approx(0.5 * part, abs=0.003)


def test_masks_are_kept_for_other_shots_alone(sequences: Tensor) -> None:
    recipe, layers = Recipe(metric="wanda", sparsity=0.5), linear_layers(tiny("llama"))
    single = prune_once(tiny("llama").eval(), recipe, sequences, "dense", lambda *_: None)
    assert not single.masks
    first = prune_once(tiny("llama").eval(), recipe, sequences, "dense", lambda *_: None, Stage())
    assert first.masks.keys() == layers.keys()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize(("family", "shot"), [("llama", 1), ("llama", 2), ("gpt2", 1)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    sequences: Tensor, tmp_path: Path, family: str, shot: int
) -> None:
    recipe = Recipe(metric="kron-obd", pattern="model", sparsity=0.6, update="refit", shots=3)
    unbroken = tiny(family)
    wanted = prune_model(unbroken, recipe, sequences, keep=tmp_path / "unbroken")

    def kill(label: str, done: int, total: int) -> None:
        if label == "pruning" and (tmp_path / "kept" / f"shot-{shot}.safetensors").exists():
            raise _Killed

    with pytest.raises(_Killed):
        prune_model(tiny(family), recipe, sequences, keep=tmp_path / "kept", progress=kill)
    resumed, seen = tiny(family), []
    found = prune_model(
        resumed,
        recipe,
        sequences,
        keep=tmp_path / "kept",
        progress=lambda label, done, _: seen.append(done) if label == "shots" else None,
    )
    assert seen[0] == shot
    assert [(s.zeros, s.before, s.after, s.predicted) for s in found.shots] == [
        (s.zeros, s.before, s.after, s.predicted) for s in wanted.shots
    ]
    for name, weight in _weights(unbroken).items():
        assert torch.equal(weight, _weights(resumed)[name]), name


def test_what_is_kept_of_another_pruning_is_refused(sequences: Tensor, tmp_path: Path) -> None:
    recipe = Recipe(metric="wanda", sparsity=0.5, shots=2)
    prune_model(tiny("llama"), recipe, sequences, keep=tmp_path)
    other = tiny("llama")
    before = _weights(other)
    for change in ({"sparsity": 0.6}, {"update": "least-squares"}):
        with pytest.raises(UsageError, match="another recipe, model or calibration"):
            prune_model(other, recipe.model_copy(update=change), sequences, keep=tmp_path)
    with pytest.raises(UsageError, match="another recipe, model or calibration"):
        prune_model(other, recipe, sequences.flip(1), keep=tmp_path)
    kept = tmp_path / "shot-2.safetensors"
    weights = load_file(kept)
    last = max(weights)
    fewer = save({name: value for name, value in weights.items() if name != last})
    narrower = save({**weights, last: weights[last][:, 1:].contiguous()})
    for damaged in (b"cut off", kept.read_bytes()[:-1], fewer, narrower):
        kept.write_bytes(damaged)
        with pytest.raises(GppruneError, match="are damaged"):
            prune_model(other, recipe, sequences, keep=tmp_path)
    assert all(torch.equal(before[name], weight) for name, weight in _weights(other).items())


def test_what_a_kill_leaves_is_no_stranger_s(tmp_path: Path) -> None:
    folder = tmp_path / "out.shots"
    folder.mkdir()
    check_shots(folder)  # killed before anything was in it
    for name in (".shot-1.safetensors.partial-0a1b2c3d", "shot-1.safetensors"):
        (folder / name).write_bytes(b"half")
    (folder / ".shots.json.partial-0a1b2c3d").mkdir()
    check_shots(folder)  # killed before there was a record
    (folder / "shot-1.txt").write_text("mine")
    with pytest.raises(UsageError, match="is something else"):
        check_shots(folder)
    forget_shots(folder)
    assert [path.name for path in folder.iterdir()] == ["shot-1.txt"]
    (folder / "shot-1.txt").unlink()
    forget_shots(folder)
    assert not folder.exists()
    forget_shots(folder)


def test_a_recipe_says_its_shots_only_where_there_are_several() -> None:
    assert "shots" not in Recipe(sparsity=0.5).model_dump()
    several = Recipe(sparsity=0.5, shots=4, schedule="cosine", cap=0.5)
    assert Recipe(**several.model_dump()) == several
    assert several.parts == sorted(several.parts) and several.parts[-1] == 1.0
    with pytest.raises(UsageError, match="schedule"):
        Recipe(sparsity=0.5, shots=4, schedule="steep")
    with pytest.raises(UsageError, match="shots"):
        Recipe(sparsity=0.5, shots=0)
