"""What fails in a search is recorded with its reason, but for what must end the search."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gpprune.errors import UsageError
from gpprune.gp import FunctionFitness, RunDirectory, SearchSettings, Unfit, evolve
from gpprune.primitives import METRIC, Formula, parse

WRECK = "mul(abs(W), sqr(X))"


class Wrecked:
    """The toy fitness, but one seed fails in a way of the test's choosing."""

    def __init__(self, toy: ModuleType, loss: Any, while_preparing: bool) -> None:
        self.inner = toy.Words()
        self.cases = self.inner.cases
        self.loss = loss
        self.while_preparing = while_preparing

    def prepare(self, formula: Formula) -> Any:
        trial = self.inner.prepare(formula)
        if formula != parse(WRECK).canonical():
            return trial
        if self.while_preparing:
            self.fail()
        return lambda start, stop: [self.fail() for _ in range(start, stop)]

    def fail(self) -> Any:
        if isinstance(self.loss, BaseException):
            raise self.loss
        return self.loss


EXCEPTIONS = [
    (Unfit("the scores of layer 3 are constant"), "the scores of layer 3 are constant"),
    (RuntimeError("out of\n  luck"), "RuntimeError: out of luck"),
    (ZeroDivisionError(), "ZeroDivisionError:"),
    (UsageError("a flag"), "UsageError: a flag"),
    (ValueError("x" * 9999), "ValueError: xxx"),
]
VALUES = [
    (math.nan, "the loss of case 0 is nan"),
    (math.inf, "the loss of case 0 is inf"),
    ("text", "ValueError: could not convert"),
]


@pytest.mark.parametrize(
    ("loss", "reason", "while_preparing"),
    [(*pair, True) for pair in EXCEPTIONS] + [(*pair, False) for pair in EXCEPTIONS + VALUES],
)
def test_a_failure_is_recorded_and_the_search_goes_on(
    toy: ModuleType, loss: Any, reason: str, while_preparing: bool
) -> None:
    fitness = Wrecked(toy, loss, while_preparing)
    seeds = {"wreck": parse(WRECK), **toy.SEEDS}
    result = evolve(METRIC, fitness, seeds=seeds, settings=toy.SETTINGS)
    wreck = result.outcomes[0]
    assert wreck.reason is not None and wreck.reason.startswith(reason)
    assert len(wreck.reason) <= 300
    assert wreck.fitness == math.inf
    assert not wreck.full and not wreck.dropped
    assert wreck.key not in {o.key for o in result.best(len(result.outcomes))}
    assert all(wreck.key not in o.parents for o in result.outcomes)
    assert result.generations == toy.SETTINGS.generations


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_must_stop_the_search_passes_through(
    toy: ModuleType, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        evolve(METRIC, Wrecked(toy, error(), True), seeds={"wreck": parse(WRECK)})


def too_large() -> BaseException:
    """What torch raises for a tensor that no memory holds."""
    try:
        torch.empty(2**58)
    except RuntimeError as error:
        return error
    raise NotImplementedError("a machine of 2^60 bytes")


OUT_OF_MEMORY = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), too_large()]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("while_preparing", [True, False])
def test_nothing_is_recorded_of_a_candidate_that_memory_did_not_hold(
    toy: ModuleType, tmp_path: Path, error: BaseException, while_preparing: bool
) -> None:
    seeds = {**toy.SEEDS, "wreck": parse(WRECK)}
    with RunDirectory.create(tmp_path / "run", toy.SETTINGS, {}) as run:
        with pytest.raises(type(error)) as caught:
            evolve(METRIC, Wrecked(toy, error, while_preparing), seeds=seeds, run=run)
        assert caught.value is error
        assert [o.origin for o in run.outcomes()] == [f"seed {name}" for name in toy.SEEDS]
        result = evolve(METRIC, toy.Words(), seeds=seeds, run=run)
    assert result.outcomes[3].origin == "seed wreck" and result.outcomes[3].full


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_fingerprint_that_memory_did_not_hold_stops_the_search(
    toy: ModuleType, error: BaseException
) -> None:
    def fail(formula: Formula) -> str:
        raise error

    with pytest.raises(type(error)):
        evolve(METRIC, toy.Words(), settings=toy.SETTINGS, fingerprint=fail)


def test_a_search_in_which_all_fail_ends_without_a_winner() -> None:
    def fail(formula: Formula) -> float:
        raise ArithmeticError("no")

    result = evolve(
        METRIC, FunctionFitness(fail), settings=SearchSettings(population=4, generations=2)
    )
    assert result.best(3) == []
    assert {o.reason for o in result.outcomes} == {"ArithmeticError: no"}
    assert result.generations == 2


def test_a_fitness_that_breaks_its_protocol_is_told_so(toy: ModuleType) -> None:
    fitness = toy.Words()
    fitness.prepare = lambda formula: lambda start, stop: [1.0]
    with pytest.raises(UsageError, match="1 losses for the 2 cases"):
        evolve(METRIC, fitness)
    fitness.cases = 0
    with pytest.raises(UsageError, match="0 cases"):
        evolve(METRIC, fitness)
