"""All updates of the table: what each costs by the curvature, and what each leaves alone."""

from __future__ import annotations

import weakref

import pytest
import torch
from curved_layers import Layer, layer, layers, optimum
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpprune.errors import UsageError
from gpprune.prune import UPDATES, Damping, Update, predicted_increase, prune_layer
from gpprune.prune.update.damping import Remembered, inverse
from gpprune.prune.update.refit import solve
from gpprune.prune.update.surgeon import independent, surgeon

DAMPING = Damping()


@given(st.integers(0, 100), st.sampled_from([0.3, 0.5, 0.7]))
def test_the_refit_costs_the_least(seed: int, share: float) -> None:
    of = layer(seed, share=share)
    A, G = of.damped(DAMPING)
    costs = {
        name: predicted_increase(
            of.weight, prune_layer(of.weight, of.mask, of.statistics, name), A, G
        )
        for name in UPDATES
    }
    best = solve(of.weight, of.mask, A, G, steps=2000)
    assert predicted_increase(of.weight, best, A, G) <= min(costs.values()) * (1 + 1e-9)
    # on a mask that is given, kron-admm is a refit
    others = [costs[name] for name in UPDATES if name not in ("refit", "surgeon", "kron-admm")]
    assert costs["refit"] < min(others)  # 20 steps do, where surgeon has all in one system


@given(st.integers(0, 100), st.sampled_from([0.3, 0.5, 0.7]))
def test_least_squares_changes_the_outputs_the_least(seed: int, share: float) -> None:
    of = layer(seed, share=share)
    A, _ = of.damped(DAMPING)
    eye = torch.eye(len(of.weight), dtype=torch.float64)
    fitted, swept, zeroed = (
        predicted_increase(of.weight, prune_layer(of.weight, of.mask, of.statistics, name), A, eye)
        for name in ("least-squares", "sparsegpt", "none")
    )
    assert fitted < min(swept, zeroed)


@given(st.integers(0, 100), st.sampled_from(["refit", "least-squares"]))
def test_every_step_of_a_number_of_ones_own_costs_less(seed: int, name: str) -> None:
    of = layer(seed)
    A, G = of.damped(DAMPING)
    factor = G if name == "refit" else torch.eye(len(G), dtype=torch.float64)
    updates = [f"{name}(1)", f"{name}(2)", f"{name}(6)", name]
    fitted = [prune_layer(of.weight, of.mask, of.statistics, update) for update in updates]
    costs = [predicted_increase(of.weight, new, A, factor) for new in fitted]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[2]
    whole = prune_layer(of.weight, of.mask, of.statistics, f"{name}(20)")
    assert torch.equal(whole, fitted[-1])


@pytest.mark.parametrize("name", ["refit(0)", "refit(3", "refit()", "refit(3.0)", "refit(-1)"])
def test_a_number_of_steps_that_is_none_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=r"does not say how many steps.*refit\(3\)"):
        UPDATES.find(name)


def test_an_update_without_steps_takes_no_number_of_them() -> None:
    with pytest.raises(UsageError, match="'surgeon' takes no number of steps, as refit, least-sq"):
        UPDATES.find("surgeon(3)")


def test_steps_of_an_update_that_chooses_its_mask_are_refused() -> None:
    of = UPDATES["admm"]
    with pytest.raises(UsageError, match="'own' chooses its mask: give it no steps"):
        Update("own", "", of.apply, choose=of.choose, steps=3)


def test_a_name_with_a_number_means_one_entry_which_is_none_of_the_table() -> None:
    assert UPDATES.find("refit(3)") is UPDATES.find("refit(3)")
    assert "refit(3)" not in UPDATES
    with pytest.raises(UsageError, match=r"no weight update 'refit\(3\)'"):
        UPDATES.remove("refit(3)")


def test_a_few_steps_are_their_own_draft() -> None:
    assert UPDATES.find("least-squares(3)").draft is None
    draft = UPDATES.find("refit(50)").draft
    assert draft is not None
    assert draft.name == "least-squares(5)"


@given(layers())
def test_one_system_of_all_entries_is_the_optimum(of: Layer) -> None:
    live_A, live_G = of.A.diagonal().gt(0).all(), of.G.diagonal().gt(0).all()
    if not (live_A and live_G):
        return  # a dead feature is damped otherwise
    found = surgeon(of.weight, of.mask, of.statistics, DAMPING, entries=10**6)
    wanted = optimum(of, *of.damped(DAMPING))
    scale = float(of.weight.abs().max())
    assert torch.allclose(found.masked_fill(of.mask, 0), wanted, rtol=1e-6, atol=1e-8 * scale)
    left = found[of.mask].abs()
    assert not left.numel() or float(left.max()) < 1e-7 * scale


@given(st.integers(0, 50), st.integers(0, 11), st.integers(0, 19))
def test_a_single_entry_is_corrected_exactly(seed: int, row: int, column: int) -> None:
    of = layer(seed)
    of.mask[:] = False
    of.mask[row, column] = True
    wanted = optimum(of, *of.damped(DAMPING))
    for update in (independent, surgeon):
        found = update(of.weight, of.mask, of.statistics, DAMPING)
        assert torch.allclose(found.masked_fill(of.mask, 0), wanted, rtol=1e-8, atol=1e-10)


def test_systems_after_one_another_as_the_published_code_has_them() -> None:
    of = layer(7)
    Ai, Gi = (torch.linalg.inv(matrix) for matrix in of.damped(DAMPING))
    for sequential in (True, False):
        wanted = of.weight.clone()
        change = torch.zeros_like(wanted)
        rows, columns = of.mask.nonzero(as_tuple=True)
        counts = of.mask.sum(1)
        assert counts.max() < 15 < counts[:2].sum()  # so each row is a system of its own
        for row in range(12):
            at = rows == row
            i, j = rows[at], columns[at]
            right = (of.weight + change if sequential else of.weight)[i, j]
            system = Gi[i][:, i] * Ai[j][:, j]
            X = torch.zeros_like(wanted)
            X[i, j] = torch.linalg.solve(system, right)
            change -= Gi @ X @ Ai
        found = surgeon(
            of.weight, of.mask, of.statistics, DAMPING, entries=15, sequential=sequential
        )
        assert torch.allclose(found, of.weight + change, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", list(UPDATES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_is_pure_and_finite(name: str, dtype: torch.dtype) -> None:
    of = layer(2, rows=10, columns=140)
    weight = of.weight.to(dtype)
    statistics = {key: value.float() for key, value in of.statistics.items()}
    statistics["aaT"][5] = 0  # an input that never speaks
    statistics["aaT"][:, 5] = 0
    statistics["ggT"][3] = 0
    statistics["ggT"][:, 3] = 0
    held = (weight, of.mask, *statistics.values())
    before = [value.clone() for value in held]
    found = prune_layer(weight, of.mask, statistics, name)
    assert found.dtype == dtype and found.isfinite().all()
    assert torch.equal(found == 0, of.mask)
    assert all(map(torch.equal, before, held))
    exact = prune_layer(weight.double(), of.mask, statistics, name)
    slack = 0.02 if dtype == torch.bfloat16 else 2e-3
    assert torch.allclose(found.double(), exact, rtol=slack, atol=slack)


@pytest.mark.parametrize("name", list(UPDATES))
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_may_go(name: str, share: float) -> None:
    of = layer(1, share=share)
    found = prune_layer(of.weight, of.mask, of.statistics, name)
    assert torch.equal(found, of.weight if share == 0 else torch.zeros_like(of.weight))


def test_layers_that_share_a_matrix_share_its_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    of = layer(0)
    found = inverse(of.A, 0.01)
    assert inverse(of.A, 0.01) is found
    assert inverse(of.A, 0.02) is not found
    assert inverse(of.A.clone(), 0.02) is not inverse(of.A, 0.02)
    again: Tensor = inverse(of.A, 0.02)
    of.A *= 2  # written to: no longer what was inverted
    assert torch.allclose(inverse(of.A, 0.02) * 2, again)


def test_layers_that_share_their_inputs_share_what_is_made_of_them() -> None:
    made: list[int] = []

    @Remembered
    def doubled(matrix: Tensor, damping: float) -> Tensor:
        made.append(len(matrix))
        return 2 * matrix + damping

    inputs = torch.eye(3)
    for size in (4, 5, 6):  # each layer has outputs of its own
        assert torch.equal(doubled(inputs, 0.1), 2 * torch.eye(3) + 0.1)
        doubled(torch.eye(size), 0.1)
    assert made == [3, 4, 5, 6]
    inputs.add_(1)
    assert torch.equal(doubled(inputs, 0.1), 2 * inputs + 0.1)
    assert torch.equal(doubled(inputs, 0.2), 2 * inputs + 0.2)
    held = weakref.ref(doubled(torch.eye(7), 0.1))
    assert held() is None, "it is forgotten with its matrix"
