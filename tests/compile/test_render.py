"""Closed forms, and Python source that computes the kernel's scores."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sympy
import torch
from random_formulas import layer
from torch import Tensor

from gpprune.compile import kernel, render
from gpprune.errors import UsageError
from gpprune.primitives import PRIMITIVES, Elements, Lowering, Primitive, parse, published

EVERY = [
    *(f.text for f in published.values()),
    "zscore(log(mul(W, exp(tanh(G)))))",
    "max(sqr(W), min(sqrt(X), sigmoid(Y)))",
    "sub(rowmean(W), colmean(pow(W, -1.5)))",
    "add(neg(rownorm(G)), div(rowsum(X), colnorm(minmax(mul(W, Y)))))",
    "pz_div(pz_log(W), pz_exp(pz_zsn(X)))",
    "mul(2, W)",
    "mul(W, pow(2, -1))",
    "mul(W, sqr(99999999999))",
    "neg(2)",
    "X",
]


# Run by a Python that finds nothing but what is installed, as a reader would paste the text.
ALONE = """
import json, runpy, sys
from pathlib import Path
import torch
terminals = {n: torch.tensor(v) for n, v in json.loads(Path("terminals.json").read_text()).items()}
found = []
for at, names in enumerate(json.loads(Path("names.json").read_text())):
    scores = runpy.run_path(f"{at}.py")["scores"]
    found.append(scores(**{n: terminals[n] for n in names}).tolist())
assert "gpprune" not in sys.modules
print(json.dumps(found))
"""


def test_python_source_computes_the_kernels_scores(tmp_path: Path) -> None:
    """In a process that knows nothing of gpprune."""
    terminals = layer(2, 8, 12)
    names = [sorted(kernel(parse(text)).terminals | {"W"}) for text in EVERY]
    (tmp_path / "names.json").write_text(json.dumps(names))
    lists = {name: value.tolist() for name, value in terminals.items()}
    (tmp_path / "terminals.json").write_text(json.dumps(lists))
    for at, text in enumerate(EVERY):
        (tmp_path / f"{at}.py").write_text(render(parse(text), "python"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for text, found in zip(EVERY, json.loads(done.stdout), strict=True):
        wanted = kernel(parse(text))(**terminals)
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-5, atol=1e-6, msg=text)


def test_python_source_is_as_the_kernel_at_the_ends_of_float32(tmp_path: Path) -> None:
    """Zeros, the smallest and the largest numbers, and what is none."""
    values = [0.0, 1.0, -1.0, 3.4e38, -3.4e38, 1e-45, 1.2e-38, 1e19, -1e20, 88.8, 65504.0, 1e5]
    weight = torch.tensor(values).reshape(3, 4)
    spoiled = weight.clone()
    spoiled[1, 2] = torch.nan
    for given in (weight, spoiled):
        terminals = {"W": given, "G": weight.abs().flip(0), "X": weight[0].abs(), "Y": given[:, 0]}
        for name in sorted(PRIMITIVES):
            second = {1: "", 2: ", 0.3" if name == "pow" else ", G"}[PRIMITIVES[name].arity]
            for text in (f"{name}(W{second})", f"{name}(X{second})"):
                formula = parse(text)
                names = kernel(formula).terminals | {"W"}
                found = imported(render(formula, "python"), tmp_path)(
                    **{n: t for n, t in terminals.items() if n in names}
                )
                wanted = kernel(formula, "blocked")(**terminals)
                torch.testing.assert_close(
                    found, wanted, rtol=1e-6, atol=0, equal_nan=True, msg=text
                )


def imported(text: str, folder: Path) -> Callable[..., Tensor]:
    """The function `scores` of a text that was saved as a file."""
    (folder / "exported.py").write_text(text)
    found: Callable[..., Tensor] = runpy.run_path(str(folder / "exported.py"))["scores"]
    return found


FACTOR = -2.0
FAR = float("inf")


def scaled(x: Tensor) -> Tensor:
    """X times a number of this file, by a function of it."""
    return _within(x * FACTOR)


def _within(x: Tensor) -> Tensor:
    return x.clamp(max=FAR).exp()


def reduce(x: Tensor) -> Tensor:
    """Called as one of the exporter's own."""
    return x


def scores(x: Tensor) -> Tensor:
    """Called as what is exported."""
    return x


def counted(x: Tensor) -> Tensor:
    """By another library."""
    return x * json.loads("2")


def added(apply: Callable[..., Tensor], name: str = "mine") -> Primitive:
    lowering = Lowering(apply, scalar="expf(-2 * a)")
    return Primitive(name, "a test's", (Elements,), Elements, sympy.Function(name), lowering)


def test_a_primitive_added_at_run_time_is_written_with_what_it_uses(tmp_path: Path) -> None:
    weight = layer(2)["W"]
    with PRIMITIVES.including(added(scaled)):
        text = render(parse("mul(mine(W), rowsum(W))"), "python")
        assert "gpprune" not in text
        wanted = (-2 * weight).exp() * weight.sum(1, keepdim=True)
        torch.testing.assert_close(imported(text, tmp_path)(weight), wanted)


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (lambda x: -x, "no source that stands alone"),
        (functools.partial(torch.mul, 2), "partial is neither"),
        (counted, "json is neither"),
        (reduce, "two things in it are called reduce"),
        (scores, "two things in it are called scores"),
    ],
)
def test_a_primitive_that_cannot_be_written_down_is_refused(
    apply: Callable[..., Tensor], reason: str
) -> None:
    with PRIMITIVES.including(added(apply)):
        formula = parse("mul(mine(W), rowsum(W))")
        with pytest.raises(UsageError, match=f"cannot be written as Python: .*{reason}"):
            render(formula, "python")
        assert render(formula, "line")


def test_those_formulas_use_every_primitive() -> None:
    assert {n.name for t in EVERY for n in parse(t).tree if n.arity} == set(PRIMITIVES)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mul(abs(W), X)", "|W|·X"),
        ("mul(add(W, X), G)", "(W + X)·G"),
        ("sub(W, sub(X, G))", "W - (X - G)"),
        ("div(W, mul(X, G))", "W/(X·G)"),
        ("sqrt(mul(W, X))", "√(W·X)"),
        ("sqr(neg(W))", "(-W)²"),
        ("sqr(sqr(W))", "(W²)²"),
        ("pow(W, -0.5)", "|W|^-0.5"),
        ("mul(7.25, div(1, rowsum(X)))", "7.25/rowsum(X)"),
        ("add(mul(123456.789, W), div(X, 3))", "1.235e+05·W + X/3"),
        ("mul(neg(W), X)", "(-W)·X"),
        ("rownorm(minmax(G))", "rownorm(minmax(G))"),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert render(parse(text), "line") == line


@pytest.mark.parametrize(
    ("text", "line", "latex"),
    [
        ("rownorm(1)", "√in_features", r"\sqrt{\mathrm{in\_features}}"),
        ("colnorm(1)", "√out_features", r"\sqrt{\mathrm{out\_features}}"),
        ("rowsum(1)", "in_features", r"\mathrm{in\_features}"),
        ("colsum(-3)", "(-3)·out_features", r"- 3 \mathrm{out\_features}"),
        ("rownorm(-3)", "3·√in_features", r"3 \sqrt{\mathrm{in\_features}}"),
        ("rowmean(1)", "1", "1"),
        ("mul(Y, rownorm(1))", "Y·√in_features", r"\sqrt{\mathrm{in\_features}} Y"),
        ("rowsum(Y)", "rowsum(Y)", r"\sum_{j} Y"),
    ],
)
def test_a_reduction_of_a_number_is_a_number_of_features(text: str, line: str, latex: str) -> None:
    formula = parse(text)
    assert render(formula, "line") == line
    assert render(formula, "latex") == latex


def test_a_norm_of_a_number_is_a_root_in_unicode() -> None:
    assert render(parse("rownorm(1)"), "unicode").split() == ["_____________", "╲╱", "in_features"]
    assert render(parse("rowsum(1)"), "unicode") == "in_features"


def test_latex_and_unicode_are_what_a_paper_prints() -> None:
    assert render(published["wanda"], "latex") == r"X \left|{W}\right|"
    assert render(published["wanda"], "unicode") == "X⋅│W│"
    assert r"\sum_{i}" in render(published["ria"], "latex")


@pytest.mark.parametrize(
    "text",
    [
        "div(W, 0)",
        "log(0)",
        "pow(0, -1)",
        "div(1, sub(W, W))",
        "max(div(0, 0), W)",
        "max(div(X, sub(W, W)), W)",
        "mul(W, pow(10, 1e9))",
    ],
)
def test_what_only_protection_makes_finite_is_still_printed(text: str) -> None:
    for format in ("text", "line", "unicode", "latex", "python"):
        assert render(parse(text), format)


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(UsageError, match="unknown format 'html'"):
        render(published["wanda"], "html")
