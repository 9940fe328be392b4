"""One entry: each kind of thing that can be added is added by a module of a few lines.

Each module below stands outside the package, as a user's would. Once it is imported, its entry is
usable from formula text, from Python and from the command line of the same process.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import gpprune
from gpprune.cli import run
from gpprune.evals import LOSSES, TEXT_SOURCES, read_text
from gpprune.primitives import (
    ALLOCATIONS,
    METRICS,
    PRIMITIVES,
    STATISTICS,
    UNIT_PRIMITIVES,
    allocation,
    parse,
)
from gpprune.prune import (
    MEASURERS,
    MODEL_SOURCES,
    PATTERNS,
    SCHEDULES,
    UPDATES,
    Recipe,
    calibrate,
    linear_layers,
    load_model,
    prune_mask,
    prune_model,
)
from gpprune.tables import Table

TABLES: list[Table[Any]] = [
    PRIMITIVES,
    UNIT_PRIMITIVES,
    STATISTICS,
    METRICS,
    ALLOCATIONS,
    MEASURERS,
    PATTERNS,
    UPDATES,
    SCHEDULES,
    LOSSES,
    TEXT_SOURCES,
    MODEL_SOURCES,
]
Add = Callable[[str], ModuleType]


@pytest.fixture
def add(tmp_path: Path) -> Iterator[Add]:
    """Import a module from its source; what it added is gone after the test."""
    before = [list(table) for table in TABLES]

    def imported(source: str) -> ModuleType:
        path = tmp_path / "mine.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("mine", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield imported
    for table, names in zip(TABLES, before, strict=True):
        for name in set(table) - set(names):
            table.remove(name)


@pytest.fixture
def flags(tiny_model_dir: Path, tiny_text: str, tmp_path: Path) -> list[str]:
    """The tiny model and text, in little."""
    text = tmp_path / "text.txt"
    text.write_text(tiny_text, encoding="utf-8")
    return [
        *("--model", str(tiny_model_dir), "--text", str(text), "--calibration-text", str(text)),
        *("--windows", "2", "--window-length", "32", "--calibration-samples", "3"),
        *("--dtype", "float32", "--json"),
    ]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What a command prints as JSON."""

    def call(*arguments: str) -> Any:
        capsys.readouterr()
        assert run(list(arguments)) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def pruning_flags(flags: list[str]) -> list[str]:
    """Those that `gpprune prune` takes."""
    pairs = dict(zip(flags[:-1:2], flags[1:-1:2], strict=True))
    kept = ("--model", "--calibration-text", "--window-length", "--calibration-samples")
    return [part for flag in kept for part in (flag, pairs[flag])] + ["--json"]


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["name"]: row["perplexity"] for row in rows}


PRIMITIVE = """
import sympy, torch
from gpprune.primitives import PRIMITIVES, Elements, Lowering, Primitive
from gpprune.primitives.weights import reach

PRIMITIVES.add(
    Primitive(
        "softsign",
        "x / (1 + |x|)",
        (Elements,),
        Elements,
        lambda x: x / (1 + sympy.Abs(x)),
        Lowering(lambda x: x / (1 + x.abs()), scalar="a / (1 + fabs(a))"),
        reach.tanh,
        odd=True,
        increasing=True,
    )
)
"""


def test_a_primitive(add: Add, flags: list[str], printed: Callable[..., Any]) -> None:
    add(PRIMITIVE)
    formula = parse("mul(softsign(abs(W)), X)")
    weight, x = torch.randn(6, 5), torch.rand(5)
    wanted = weight.abs() / (1 + weight.abs()) * x
    for backend in ("reference", "blocked", "machine", "generated"):
        found = gpprune.kernel(formula, backend)(W=weight, X=x)
        torch.testing.assert_close(found.float(), wanted)
    # its facts serve the canonical form, and a search draws it
    assert parse("softsign(mul(abs(W), X))").key == parse("mul(abs(W), X)").key
    assert parse("softsign(neg(W))").canonical(None).text == "neg(softsign(W))"
    assert "softsign" in {p.name for p in gpprune.METRIC.pset.primitives[gpprune.METRIC.root]}
    assert "softsign" in {row["name"] for row in printed("primitives", "--json")}
    rows = printed("score", "metrics", "wanda", formula.text, *flags)
    assert figures(rows)[formula.text] > 1
    assert allocation("spread(mean(softsign(W)), 0.1)").text == "spread(mean(softsign(W)), 0.1)"


METRIC = """
from gpprune.primitives import METRICS, Published

METRICS.add(Published("mine", "mul(sqr(W), X)", "of my own", "layer"))
"""


def test_a_metric(add: Add, flags: list[str], printed: Callable[..., Any]) -> None:
    add(METRIC)
    assert gpprune.published["mine"] == parse("mul(sqr(W), X)")
    assert Recipe(metric="mine", sparsity=0.5).formula == parse("mul(sqr(W), X)")
    rows = printed("score", "metrics", "mine", "mul(sqr(W), X)", "--pattern", "layer", *flags)
    assert figures(rows)["mine"] == figures(rows)["mul(sqr(W), X)"]
    assert printed("score", "metrics", "mine", *flags)[1]["pattern"] == "layer"
    assert "mine" in gpprune.MetricGoal().seeds()


ALLOCATION = """
from gpprune.primitives import ALLOCATIONS, PublishedAllocation

ALLOCATIONS.add(PublishedAllocation("deeper", "spread(depth, 0.3)", "of my own", "block"))
"""


def test_an_allocation(add: Add, flags: list[str], printed: Callable[..., Any]) -> None:
    add(ALLOCATION)
    assert allocation("deeper").text == "spread(depth, 0.3)"
    assert Recipe(allocation="deeper", sparsity=0.5).unit == "block"
    rows = printed("score", "allocations", "deeper", "atp(0.3)", *flags)
    assert figures(rows)["deeper"] == figures(rows)["atp(0.3)"]
    assert "deeper" in gpprune.AllocationGoal().seeds()


STATISTIC = """
import torch
from gpprune.primitives import STATISTICS, Inputs, Statistic
from gpprune.primitives.weights.reach import Reach
from gpprune.primitives.weights.terminals import Sign
from gpprune.prune import MEASURERS, Activations, Measurer

STATISTICS.add(
    Statistic(
        "M",
        Inputs,
        "largest size of each input feature",
        Sign.NONNEGATIVE,
        Reach(-14, 12),
        probe=lambda layer: 3 * layer.inputs,
    )
)


class Peaks(Activations):
    def see(self, name, inputs, outputs):
        peak = inputs.abs().flatten(0, -2).amax(0)
        self.seen[name] = torch.maximum(peak, self.seen.get(name, peak))


MEASURERS.add(Measurer("M", Peaks, "nothing"))
"""


def test_a_statistic(
    add: Add,
    flags: list[str],
    printed: Callable[..., Any],
    tiny_model_dir: Path,
    tiny_tokens: Tensor,
) -> None:
    add(STATISTIC)
    model = load_model(str(tiny_model_dir)).model
    tokens = tiny_tokens[:96].view(3, 32)
    measured = calibrate(model, tokens, ["M"])
    seen: dict[str, Tensor] = {}
    name, layer = list(linear_layers(model).items())[2]
    handle = layer.module.register_forward_pre_hook(
        lambda module, inputs: seen.update(x=inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    largest = []
    for sequence in tokens:
        with torch.no_grad():
            model(sequence[None])
        largest.append(seen["x"].abs().amax(0))
    handle.remove()
    assert set(measured[name]) == {"M"}
    torch.testing.assert_close(measured[name]["M"], torch.stack(largest).amax(0))
    rows = printed("score", "metrics", "mul(abs(W), M)", *flags)
    assert figures(rows)["mul(abs(W), M)"] > 1
    assert "M" in {row["name"] for row in printed("primitives", "--json")}
    assert "M" in {terminal.name for terminal in gpprune.METRIC.pset.terminals[_type_of("M")]}
    recipe = Recipe(metric="mul(abs(W), M)", sparsity=0.5)
    assert prune_model(model, recipe, tokens).sparsity == pytest.approx(0.5, abs=0.01)


def _type_of(name: str) -> type:
    type_ = gpprune.METRIC.terminals[name].type
    assert type_ is not None
    return type_


PATTERN = """
from gpprune.prune import PATTERNS, Pattern, PatternForm

COLUMNS = Pattern(
    "columns",
    None,
    arrange=lambda scores: scores.sum(0, keepdim=True),
    restore=lambda chosen, shape: chosen.expand(shape),
)
PATTERNS.add(
    PatternForm("columns", "columns", "whole input features", "columns", lambda match: COLUMNS)
)
"""


def whole_columns(weight: Tensor) -> Tensor:
    zero = weight == 0
    assert torch.equal(zero.all(0), zero.any(0))
    return zero.any(0)


def test_a_pattern(
    add: Add,
    flags: list[str],
    printed: Callable[..., Any],
    tiny_model_dir: Path,
    tiny_tokens: Tensor,
    tmp_path: Path,
) -> None:
    add(PATTERN)
    scores = torch.rand(6, 10)
    lowest = scores.sum(0).argsort()[:4]
    mask = prune_mask(scores, 0.4, "columns")
    assert mask.all(0).nonzero()[:, 0].tolist() == sorted(lowest.tolist())
    assert int(mask.sum()) == 24
    # by every path: alone, and with an allocation, in both orders
    tokens = tiny_tokens[:96].view(3, 32)
    for chosen in ("uniform", "atp(0.3)"):
        for order in ("dense", "sequential"):
            model = load_model(str(tiny_model_dir)).model
            recipe = Recipe(allocation=chosen, sparsity=0.5, pattern="columns")
            prune_model(model, recipe, tokens, order=order)
            shares = [
                float(whole_columns(layer.weight).float().mean())
                for layer in linear_layers(model).values()
            ]
            assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.05)
            assert (max(shares) - min(shares) > 0.1) == (chosen != "uniform")
    rows = printed("score", "allocations", "uniform", "atp(0.3)", "--pattern", "columns", *flags)
    assert {row["pattern"] for row in rows[1:]} == {"columns"}
    out = tmp_path / "pruned"
    printed("prune", "--out", str(out), "--pattern", "columns", *pruning_flags(flags))
    for layer in linear_layers(load_model(str(out)).model).values():
        assert 0.4 < float(whole_columns(layer.weight).float().mean()) < 0.6


UPDATE = """
from gpprune.prune import UPDATES, Update


def doubled(weight, mask, statistics, damping):
    return weight * 2


UPDATES.add(Update("doubled", "what stays is doubled", doubled))
"""


def test_a_weight_update(
    add: Add,
    flags: list[str],
    printed: Callable[..., Any],
    tiny_model_dir: Path,
    tiny_tokens: Tensor,
    tmp_path: Path,
) -> None:
    add(UPDATE)
    tokens = tiny_tokens[:96].view(3, 32)
    plain, updated = (load_model(str(tiny_model_dir)).model for _ in range(2))
    prune_model(plain, Recipe(sparsity=0.5), tokens, order="dense")
    prune_model(updated, Recipe(sparsity=0.5, update="doubled"), tokens, order="dense")
    for name, layer in linear_layers(updated).items():
        assert torch.equal(layer.weight, 2 * linear_layers(plain)[name].weight)
    rows = printed("score", "metrics", "wanda", "--update", "doubled", *flags)
    without = printed("score", "metrics", "wanda", *flags)
    assert figures(rows)["wanda"] != figures(without)["wanda"]
    out = tmp_path / "pruned"
    dense = ["--order", "dense", *pruning_flags(flags)]
    found = printed("prune", "--out", str(out), "--update", "doubled", *dense)
    assert found["recipe"]["update"] == "doubled"
    once = tmp_path / "once"
    printed("prune", "--out", str(once), *dense)
    for name, layer in linear_layers(load_model(str(out)).model).items():
        single = linear_layers(load_model(str(once)).model)[name].weight
        assert torch.equal(layer.weight, 2 * single)


CHOOSING = """
import torch
from gpprune.prune import UPDATES, Update


def halved(weight, choice, statistics, damping):
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    for start in range(0, weight.shape[1], 8):  # by what the metric says of halves of weights
        mask[:, start : start + 8] = choice.columns(weight / 2, start, start + 8)
    return weight / 2, mask


UPDATES.add(
    Update(
        "halved",
        "what stays is halved, in blocks of 8 columns",
        lambda weight, mask, statistics, damping: weight / 2,
        choose=halved,
    )
)
"""


def test_a_weight_update_that_chooses(
    add: Add,
    flags: list[str],
    printed: Callable[..., Any],
    tiny_model_dir: Path,
    tiny_tokens: Tensor,
    tmp_path: Path,
) -> None:
    add(CHOOSING)
    dense, pruned = (load_model(str(tiny_model_dir)).model for _ in range(2))
    recipe = Recipe(sparsity=0.5, pattern="layer", update="halved")
    report = prune_model(pruned, recipe, tiny_tokens[:96].view(3, 32), order="dense")
    for name, layer in linear_layers(pruned).items():
        kept, old = layer.weight != 0, linear_layers(dense)[name].weight
        assert torch.equal(layer.weight[kept], old[kept] / 2)
        assert int((~kept).sum()) == layer.weight.numel() // 2
        shares = (~kept).float().view(len(kept), -1, 8).mean((0, 2))  # of each block its own
        torch.testing.assert_close(shares, torch.full_like(shares, 0.5), atol=0.01, rtol=0)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    rows = printed("score", "metrics", "wanda", "--update", "halved", *flags)
    assert figures(rows)["wanda"] > 1
    search = ("--population", "4", "--generations", "1", "--rivals", "best")
    out = ("--out", str(tmp_path / "run"))
    assert printed("evolve", "metric", "--update", "halved", *search, *out, *flags)["formulas"]


SCHEDULE = """
from gpprune.prune import SCHEDULES, Schedule

SCHEDULES.add(Schedule("late", "the last shots take more", lambda done: done**2))
"""


def test_a_schedule(
    add: Add, flags: list[str], printed: Callable[..., Any], tmp_path: Path
) -> None:
    add(SCHEDULE)
    assert Recipe(sparsity=0.5, shots=2, schedule="late").parts == [0.25, 1.0]
    out = ("--out", str(tmp_path / "pruned"))
    shots = ("--shots", "2", "--schedule", "late", "--sparsity", "0.5")
    found = printed("prune", *shots, *out, *pruning_flags(flags))
    assert [shot["sparsity"] for shot in found["shots"]] == pytest.approx([0.125, 0.5], abs=0.01)
    search = ("--population", "4", "--generations", "1", "--rivals", "best")
    out = ("--out", str(tmp_path / "run"))
    printed("evolve", "metric", *shots, *search, *out, *flags)
    assert Recipe.read(tmp_path / "run" / "recipe.json").schedule == "late"


LOSS = """
import torch
from gpprune.evals import LOSSES, Loss


def wrong(model, dense):
    @torch.no_grad()
    def share(window):
        logits = model(window[None]).logits[0, :-1]
        return float((logits.argmax(1) != window[1:]).double().mean())

    return share


LOSSES.add(Loss("wrong", "share of tokens foreseen wrongly", "tokens a token", wrong))
"""


def test_a_loss(add: Add, flags: list[str], printed: Callable[..., Any], tmp_path: Path) -> None:
    add(LOSS)
    row = printed("eval", "--loss", "wrong", *[f for f in _eval_flags(flags)])
    assert 0 < row["wrong"] < 1
    rows = printed("score", "metrics", "wanda", "magnitude", "--loss", "wrong", *flags)
    assert all(0 < row["wrong"] <= 1 for row in rows)
    out = tmp_path / "run"
    search = ("--population", "4", "--generations", "1", "--rivals", "best", "--out", str(out))
    found = printed("evolve", "metric", "--loss", "wrong", *search, *flags)
    assert found["loss"] == "wrong"
    assert all(0 < row["test_wrong"] <= 1 for row in found["formulas"])
    assert 0 < printed("report", str(out), "--json")[0]["validation_wrong"] <= 1
    assert 0 < printed("simplify", str(out), "--format", "json")[0]["wrong"] <= 1


def _eval_flags(flags: list[str]) -> list[str]:
    pairs = dict(zip(flags[:-1:2], flags[1:-1:2], strict=True))
    kept = ("--model", "--text", "--windows", "--window-length", "--dtype")
    return [part for flag in kept for part in (flag, pairs[flag])] + ["--json"]


TEXT = """
from gpprune.evals import TEXT_SOURCES, TextSource

TEXT_SOURCES.add(TextSource("rain", "my own words", lambda spec, split: "It rained . " * 400))
"""


def test_a_text_source(add: Add, flags: list[str], printed: Callable[..., Any]) -> None:
    add(TEXT)
    assert read_text("rain", "test").startswith("It rained")
    given = [part if not part.endswith("text.txt") else "rain" for part in flags]
    rows = printed("score", "metrics", "wanda", *given)
    assert rows[0]["perplexity"] > 1


MODEL = """
from gpprune.prune import MODEL_SOURCES, ModelSource

MODEL_SOURCES.add(ModelSource("mine", lambda spec, progress: {folder!r}))
"""


def test_a_model_source(
    add: Add, flags: list[str], printed: Callable[..., Any], tiny_model_dir: Path
) -> None:
    add(MODEL.format(folder=str(tiny_model_dir)))
    assert load_model("mine").name == "mine"
    given = [part if part != str(tiny_model_dir) else "mine" for part in flags]
    found = figures(printed("score", "metrics", "wanda", *given))
    assert found == figures(printed("score", "metrics", "wanda", *flags))
