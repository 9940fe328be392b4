"""Masks mended by swaps, against the same swaps tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from columns_pattern import arrange, restore
from curved_layers import Layer, gram, layer, layers
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from threads import on_threads
from tiny_families import tiny
from torch import Tensor
from torch.nn.functional import pad

from gpprune.compile import kernel
from gpprune.compile.cpp import native
from gpprune.errors import UsageError
from gpprune.primitives import parse
from gpprune.prune import (
    Choice,
    Pattern,
    Recipe,
    linear_layers,
    parse_pattern,
    prune_layer,
    prune_model,
)
from gpprune.prune.select.partners import partners
from gpprune.prune.update.swap_rows import swap_rows
from gpprune.prune.update.swaps import swapped

Array = NDArray[np.float64]


def lost(weight: Array, goes: Array, A: Array, aim: Array | None = None) -> float:
    D = (weight if aim is None else aim) - np.where(goes, 0, weight)
    return float(D @ A @ D)


def after(goes: Array, back: int, go: int) -> Array:
    new = goes.copy()
    new[back], new[go] = False, True
    return new


def tried(
    weight: Array, goes: Array, A: Array, part: Array, pairs: bool, aim: Array | None
) -> list[tuple[int, int]]:
    """The swaps of one part that are tried: what comes back, and what goes."""
    back = [i for i in part if goes[i] and weight[i] != 0]
    go = [j for j in part if not goes[j]]
    if not back or not go:
        return []
    if pairs:
        return [(i, j) for i in back for j in go]

    def changed(at: int) -> float:
        new = goes.copy()
        new[at] = not new[at]
        return lost(weight, new, A, aim)

    best_back, best_go = min(back, key=changed), min(go, key=changed)
    return [(best_back, j) for j in go] + [(i, best_go) for i in back]


def by_hand(weight: Array, goes: Array, aim: Array, A: Array, parts: Array, pairs: bool) -> Array:
    """The mask of one row after the best of all tried swaps, again and again."""
    while True:
        now = lost(weight, goes, A, aim)
        all_tried = [swap for part in parts for swap in tried(weight, goes, A, part, pairs, aim)]
        if not all_tried:
            return goes
        best = min(all_tried, key=lambda swap: lost(weight, after(goes, *swap), A, aim))
        if lost(weight, after(goes, *best), A, aim) >= now * (1 - 1e-12):
            return goes
        goes = after(goes, *best)


def rows_by_hand(
    of: Layer, parts: Tensor, pairs: bool = False, aim: Tensor | None = None
) -> Tensor:
    aims = of.weight if aim is None else aim
    rows = zip(of.weight.numpy(), of.mask.numpy(), aims.numpy(), strict=True)
    found = [by_hand(*row, of.A.numpy(), parts.numpy(), pairs) for row in rows]
    return torch.from_numpy(np.stack(found))


@given(st.integers(0, 1000), st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from(["row", "2:4"]))
def test_swaps_are_those_made_by_hand(seed: int, share: float, text: str) -> None:
    of = layer(seed, rows=4, columns=12, share=share)
    parts = partners(parse_pattern(text), (4, 12))
    found = swapped(of.weight, of.mask, of.A, parts)
    assert torch.equal(found, rows_by_hand(of, parts))


@given(st.integers(0, 1000), st.sampled_from(["row", "2:4", "4:8"]))
def test_cpp_makes_the_swaps_made_by_hand(seed: int, text: str) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler")
    columns = 24 if text == "row" else 16  # wider than what has all its pairs tried, or not
    of = layer(seed, rows=3, columns=columns)
    parts = partners(parse_pattern(text), (3, columns))
    weight, A = of.weight.float(), of.A.float()
    bent = weight.masked_fill(~of.mask, 0) @ A
    found = swap_rows(weight, of.mask, A, parts, bent, torch.zeros(3))
    assert found is not None
    wanted = rows_by_hand(of, parts, pairs=text != "row")
    costs = [
        [lost(w, g, of.A.numpy()) for w, g in zip(of.weight.numpy(), m.numpy(), strict=True)]
        for m in (found, wanted)
    ]
    assert costs[0] == pytest.approx(costs[1], rel=1e-4)


@given(layers(), st.sampled_from([torch.float32, torch.float64]))
def test_no_row_loses_more_and_each_keeps_its_number(of: Layer, dtype: torch.dtype) -> None:
    rows, columns = of.weight.shape
    of.weight[:, 0] = 0  # what is zero anyway need not come back
    found = swapped(
        of.weight.to(dtype),
        of.mask,
        of.A.to(dtype),
        partners(parse_pattern("row"), (rows, columns)),
    )
    assert torch.equal(found.sum(1), of.mask.sum(1))
    assert (found | ~of.mask)[:, 0].all()
    A = of.A.numpy()
    for weight, new, old in zip(of.weight, found, of.mask, strict=True):
        before = lost(weight.numpy(), old.numpy(), A)
        assert lost(weight.numpy(), new.numpy(), A) <= before * (1 + 1e-5) + 1e-12


def test_losses_that_cancel_go_together() -> None:
    # two inputs that always say the same, and a third that says half as much of something else
    A = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.25]])
    weight = torch.tensor([[1.0, -1.0, 1.0]])
    choice = Choice(
        kernel(parse("mul(abs(W), sqrt(A))")), {"A": A.diagonal()}, parse_pattern("row"), 2
    )
    assert choice.mask(weight).tolist() == [[True, False, True]]
    found = prune_layer(weight, choice, {"aaT": A}, "swaps")
    assert found.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(
    ("text", "columns"),
    [("row", 65), ("row", 130), ("row", 520), ("cols:64", 192), ("cols:65", 130), ("2:4", 132)],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_cpp_makes_the_swaps_of_torch(
    text: str, columns: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler")
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(401, columns, generator=generator)
    mask = torch.rand(401, columns, generator=generator) < 0.5
    A = gram(3 * columns, columns, generator).float()
    parts = partners(parse_pattern(text), (401, columns)).flip(0)  # in any order
    with on_threads(threads):
        found = swapped(weight, mask, A, parts)
    monkeypatch.setattr("gpprune.prune.update.swaps.swap_rows", lambda *given: None)
    wanted = swapped(weight, mask, A, parts)
    # a rounding may decide between two swaps, and with it for all that follow in a row
    assert (found == wanted).all(1).double().mean() > 0.9
    losses = [
        [lost(w, g, A.numpy()) for w, g in zip(weight.numpy(), goes.numpy(), strict=True)]
        for goes in (found, wanted)
    ]
    assert sum(losses[0]) == pytest.approx(sum(losses[1]), rel=0.01)


@pytest.mark.parametrize("text", ["row", "2:4"])
def test_an_input_that_dwarfs_the_others_hides_none_of_them(text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator)
    inputs = torch.randn(500, 64, generator=generator) * (1 + torch.rand(64, generator=generator))
    inputs[:, 3] += 1000
    A = inputs.t() @ inputs / 500
    pattern = parse_pattern(text)
    score = kernel(parse("mul(abs(W), sqrt(A))"))
    choice = Choice(score, {"A": A.diagonal()}, pattern, 40 * 32)
    before = choice.mask(weight)
    after_ = prune_layer(weight, choice, {"aaT": A}, "swaps") == 0
    assert not torch.equal(before, after_)
    for row, old, new in zip(weight.numpy(), before.numpy(), after_.numpy(), strict=True):
        assert lost(row, new, A.double().numpy()) <= lost(row, old, A.double().numpy()) * (1 + 1e-5)


@pytest.mark.parametrize("device", ["cpp", "torch"])
def test_much_is_gained_on_correlated_inputs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpp" and native.compiler() is None:
        pytest.skip("there is no C++ compiler")
    if device == "torch":
        monkeypatch.setattr("gpprune.prune.update.swaps.swap_rows", lambda *given: None)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 300, generator=generator)
    A = gram(900, 300, generator).float()
    mask = torch.zeros(200, 300, dtype=torch.bool)
    mask[:, ::2] = True
    for text in ("row", "2:4"):
        goes = mask if text == "row" else mask.view(200, -1, 4)[:, :, [0, 2, 1, 3]].reshape(200, -1)
        found = swapped(weight, goes, A, partners(parse_pattern(text), (200, 300)))
        rows = zip(weight.numpy(), found.numpy(), goes.numpy(), strict=True)
        costs = np.array([[lost(w, g, A.numpy()) for g in (new, old)] for w, new, old in rows])
        assert (costs[:, 0] <= costs[:, 1]).all()
        assert costs[:, 0].sum() < 0.75 * costs[:, 1].sum()


@given(st.integers(0, 1000), st.sampled_from(["row", "2:4"]))
def test_swaps_towards_an_aim_are_those_made_by_hand(seed: int, text: str) -> None:
    of = layer(seed, rows=4, columns=12)
    aim = of.weight + 0.3 * layer(seed + 1, rows=4, columns=12).weight
    parts = partners(parse_pattern(text), (4, 12))
    found = swapped(of.weight, of.mask, of.A, parts, aim)
    assert torch.equal(found, rows_by_hand(of, parts, aim=aim))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("row", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("rows:2", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("layer", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("model", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("cols:4", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("2:4", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("N:2", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_partners_are_of_one_group_in_every_row(text: str, wanted: list[list[int]]) -> None:
    assert partners(parse_pattern(text), (4, 8)).tolist() == wanted


def test_partners_of_a_pattern_of_ones_own() -> None:
    strided = Pattern(
        "strided",
        None,
        lambda scores: scores.view(-1, 2).t(),
        lambda chosen, shape: chosen.t().reshape(shape),
    )
    assert partners(strided, (3, 6)).tolist() == [[0, 2, 4], [1, 3, 5]]
    with pytest.raises(UsageError, match="'columns' prunes several weights at once"):
        partners(Pattern("columns", None, arrange, restore), (3, 6))
    halves = Pattern("halves", None, lambda scores: scores.reshape(2, -1))
    with pytest.raises(UsageError, match="'halves' parts its rows unequally"):
        partners(halves, (3, 6))
    # what is arranged is no whole number, and need not be the scores themselves
    normed = Pattern("normed", None, lambda scores: scores / scores.norm(dim=1, keepdim=True))
    assert partners(normed, (3, 6)).tolist() == [[0, 1, 2, 3, 4, 5]]
    spared = Pattern(
        "spared", None, lambda scores: scores[:, 1:], lambda chosen, shape: pad(chosen, (1, 0))
    )
    with pytest.raises(UsageError, match="'spared' never prunes some weights"):
        partners(spared, (3, 6))


@pytest.mark.parametrize(
    ("pattern", "sparsity", "shots"),
    [("row", 0.5, 1), ("model", 0.6, 1), ("2:4", None, 1), ("2:4", None, 3), ("N:8", 0.5, 2)],
)
def test_a_model_keeps_its_weights_and_its_pattern(
    pattern: str, sparsity: float | None, shots: int
) -> None:
    allocation = "atp(0.1)" if pattern == "N:8" else "uniform"
    recipe = Recipe.make(
        pattern=pattern, sparsity=sparsity, shots=shots, update="swaps", allocation=allocation
    )
    tokens = torch.randint(1, 64, (4, 32), generator=torch.Generator().manual_seed(0))
    model, dense, plain = tiny("llama"), tiny("llama"), tiny("llama")
    prune_model(model, recipe, tokens, order="dense")
    prune_model(plain, recipe.model_copy(update={"update": "none"}), tokens, order="dense")
    moved = zeros = 0
    pruned = linear_layers(model), linear_layers(plain), linear_layers(dense)
    for one, other, before in zip(*(each.values() for each in pruned), strict=True):
        goes = one.weight == 0
        assert torch.equal(one.weight, before.weight.masked_fill(goes, 0))
        width = {"2:4": 4, "N:8": 8}.get(pattern, goes.shape[1])
        if shots == 1:
            counts = [m.view(-1, width).sum(1) for m in (goes, other.weight == 0)]
            assert torch.equal(*counts)
        if pattern == "2:4":
            assert (goes.view(-1, 4).sum(1) == 2).all()
        if pattern == "N:8":
            assert goes.view(-1, 8).sum(1).unique().numel() == 1
        moved += int((goes & (other.weight != 0)).sum())
        zeros += int(goes.sum())
    assert zeros == sum(int((layer.weight == 0).sum()) for layer in linear_layers(plain).values())
    assert moved > 0.02 * zeros


def test_masks_make_up_for_the_pruning_before_them() -> None:
    tokens = torch.randint(1, 64, (32, 64), generator=torch.Generator().manual_seed(0))
    drifts = {}
    for order in ("true-sequential", "corrected"):
        dense, model = tiny("llama"), tiny("llama")
        prune_model(model, Recipe(sparsity=0.6, update="swaps"), tokens, order=order)
        pairs = zip(linear_layers(model).values(), linear_layers(dense).values(), strict=True)
        for one, before in pairs:
            assert torch.equal(one.weight, before.weight.masked_fill(one.weight == 0, 0))
        states = [m(tokens, output_hidden_states=True).hidden_states[-1] for m in (dense, model)]
        drifts[order] = float((states[0] - states[1]).detach().norm())
    assert drifts["corrected"] < 0.95 * drifts["true-sequential"]
