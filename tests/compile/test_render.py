"""Closed forms, and Python source that computes the kernel's scores."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from random_formulas import layer

from gpprune.compile import kernel, render
from gpprune.errors import UsageError
from gpprune.primitives import PRIMITIVES, parse, published

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


def test_python_source_computes_the_kernels_scores(tmp_path: object) -> None:
    """In a process that knows nothing of gpprune, as a reader would paste it."""
    terminals = layer(2, 8, 12)
    lists = {name: value.tolist() for name, value in terminals.items()}
    for text in EVERY:
        formula = parse(text)
        names = sorted(kernel(formula).terminals - {"W"})
        call = ", ".join(["t['W']", *(f"{n}=t['{n}']" for n in names)])
        program = (
            f"{render(formula, 'python')}\n"
            "import json\n"
            f"t = json.loads('{json.dumps(lists)}')\n"
            "t = {n: torch.tensor(v) for n, v in t.items()}\n"
            f"print(json.dumps(scores({call}).tolist()))\n"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
        )
        found = torch.tensor(json.loads(done.stdout))
        torch.testing.assert_close(found, kernel(formula)(**terminals), rtol=1e-5, atol=1e-6)


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
