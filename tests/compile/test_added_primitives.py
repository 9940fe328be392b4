"""Primitives added at run time: every backend computes them at once, and every declared one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy
import torch
from random_formulas import layer
from torch import Tensor

from gpprune.compile import kernel
from gpprune.compile.backends import Blocked
from gpprune.compile.cpp import machine, native
from gpprune.errors import UsageError
from gpprune.primitives import (
    PRIMITIVES,
    STATISTICS,
    Elements,
    Inputs,
    Lowering,
    Outputs,
    Primitive,
    ProbeLayer,
    Reduction,
    Statistic,
    ValueType,
    parse,
)

SHAPE = (5, 1100)
IN_CPP = pytest.mark.skipif(machine.built() is None, reason="the machine cannot be built")


def primitive(
    name: str,
    lowering: Lowering,
    result: ValueType = Elements,
    arguments: int = 1,
) -> Primitive:
    symbolic: Callable[..., sympy.Expr] = sympy.Function(name)
    return Primitive(name, "a test's", (Elements,) * arguments, result, symbolic, lowering)


def between(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.maximum(low, torch.minimum(x, high))


ADDED = [
    # three arguments, of which any may vary from column to column
    primitive("between", Lowering(between, scalar="max(b, min(a, c))"), arguments=3),
    # what no declared one reduces by
    primitive("rowmax", Lowering(None, (Reduction("max", "in"),)), Outputs),
    primitive("colmin", Lowering(None, (Reduction("min", "out"),)), Inputs),
    # a reduction that itself varies from column to column
    primitive("above", Lowering(torch.sub, (Reduction("max", "out"),), scalar="a - b")),
    # reductions that C++ lacks
    primitive("colstd", Lowering(None, (Reduction("std", "out"),)), Inputs),
    primitive("rowstd", Lowering(None, (Reduction("std1", "in"),)), Outputs),
    # a name of the machine's own
    primitive("stream", Lowering(torch.neg, scalar="-a")),
]
TEXTS = [
    "between(W, X, Y)",
    "between(X, Y, W)",
    "between(0.1, Y, X)",
    "between(G, 0.001, X)",
    "between(Y, W, G)",
    "mul(W, rowmax(W))",
    "rowmax(mul(W, X))",
    "add(W, colmin(mul(W, X)))",
    "above(W)",
    "above(mul(Y, X))",
    "mul(W, colstd(W))",
    "sub(abs(W), rowstd(mul(W, X)))",
    "stream(abs(W))",
]
ROUNDED = {"rtol": 3e-5, "atol": 1e-6}


@pytest.mark.parametrize("text", TEXTS)
def test_it_is_computed_alike_everywhere(text: str) -> None:
    terminals = layer(3, *SHAPE)
    with PRIMITIVES.including(*ADDED):
        wanted = kernel(parse(text), "reference")(**terminals)
        for backend in ("blocked", "machine", "generated"):
            found = kernel(parse(text), backend)(**terminals)
            torch.testing.assert_close(found.double(), wanted, **ROUNDED, msg=backend)
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.slow
def test_inductor_computes_it() -> None:
    terminals = layer(3, *SHAPE)
    with PRIMITIVES.including(*ADDED):
        formula = parse("between(W, X, above(G))")
        wanted = kernel(formula, "reference")(**terminals)
        found = kernel(formula, "inductor")(**terminals)
    torch.testing.assert_close(found.double(), wanted, **ROUNDED)


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine", "generated"])
def test_another_of_the_same_name_is_another(backend: str) -> None:
    terminals = layer(3)
    first = primitive("mine", Lowering(torch.neg, scalar="-a"))
    second = primitive("mine", Lowering(torch.abs, scalar="fabs(a)"))
    with PRIMITIVES.including(first):
        before = kernel(parse("mine(W)"), backend)
        assert torch.equal(before(**terminals).float(), -terminals["W"])
    with PRIMITIVES.including(second):
        after = kernel(parse("mine(W)"), backend)
        assert torch.equal(after(**terminals).float(), terminals["W"].abs())
        # a kernel computes what it was made to
        assert torch.equal(before(**terminals).float(), -terminals["W"])
    assert torch.equal(after(**terminals).float(), terminals["W"].abs())
    narrow = {"W": terminals["W"].bfloat16()}
    assert torch.equal(after(**narrow).float(), narrow["W"].abs().float())


def test_a_scalar_that_is_no_cpp_is_said_and_computed_by_torch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    if native.compiler() is None:
        pytest.skip("there is no C++ compiler")
    native.forget()
    wrong = primitive("wrong", Lowering(torch.neg, scalar="minus(a)"))
    with PRIMITIVES.including(wrong):
        for backend in ("machine", "generated"):
            found = kernel(parse("wrong(W)"), backend)(**layer(3))
            assert torch.equal(found, -layer(3)["W"])
    native.forget()
    (record,) = caplog.records
    assert "minus" in record.getMessage()


@pytest.mark.parametrize("reduction", [Reduction("median", "in"), Reduction("sum", "up")])
def test_a_reduction_that_there_is_not_is_named(reduction: Reduction) -> None:
    with PRIMITIVES.including(primitive("strange", Lowering(None, (reduction,)), Outputs)):
        for backend in ("reference", "machine"):
            with pytest.raises(UsageError, match=f"no reduction '{reduction.kind}'"):
                kernel(parse("mul(W, strange(W))"), backend)


@IN_CPP
@pytest.mark.parametrize("backend", ["machine", "generated"])
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_each_declared_primitive_is_done_in_cpp(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of what a search may draw is left to the slower backend."""

    def left(*_: object) -> None:
        raise AssertionError(f"{name} is left to torch")

    monkeypatch.setattr(Blocked, "__call__", left)
    second = {"pow": ["0.3"]}.get(name, ["X", "Y", "G", "0.1"])
    pairs = ["mul(W, X)"] if PRIMITIVES[name].arity == 1 else [f"W, {other}" for other in second]
    if backend == "generated":  # each is compiled
        pairs = pairs[:1]
    for pair in pairs:
        kernel(parse(f"{name}({pair})"), backend)(**layer(3))


@pytest.mark.parametrize("backend", ["reference", "blocked", "machine", "generated"])
def test_a_statistic_declared_anew_has_its_new_axes(backend: str) -> None:
    weight, values = torch.ones(4, 4), torch.arange(4.0)
    for type_, wanted in ((Inputs, values.expand(4, 4)), (Outputs, values[:, None].expand(4, 4))):
        drawn = "in_features" if type_ is Inputs else "out_features"

        def probe(layer: ProbeLayer, drawn: str = drawn) -> torch.Tensor:
            return layer.lognormal(1.0, getattr(layer, drawn))

        with STATISTICS.including(Statistic("K", type_, "of a test", probe=probe)):
            scores = kernel(parse("mul(abs(W), K)"), backend)(W=weight, K=values)
        assert torch.equal(scores.float(), wanted)
