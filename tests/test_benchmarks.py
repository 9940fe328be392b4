"""Every benchmark, run small: it works, and prints the ratios that it is for."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gpprune
from benchmarks import evolve, protocol, structures, updates
from gpprune.errors import UsageError
from gpprune.prune import MEASURERS

ROOT = Path(__file__).parents[1]
BENCHMARKS = (
    "backends",
    "bandwidth",
    "candidates",
    "distinct",
    "duels",
    "evolve",
    "kernels",
    "loops",
    "masks",
    "memory",
    "overlap",
    "protocol",
    "ranking",
    "replay",
    "roofline",
    "search",
    "seeds",
    "small_models",
    "stages",
    "streaming",
    "structures",
    "updates",
)
LAYER = "model.layers.1.mlp.down_proj"
Ran = Callable[..., str]


def main_of(name: str) -> Callable[[list[str]], None]:
    module = importlib.import_module(f"benchmarks.{name}")
    main: Callable[[list[str]], None] = module.main
    return main


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs a benchmark in this process and returns what it prints."""

    def run(name: str, *arguments: object) -> str:
        main_of(name)([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def text_file(tmp_path: Path, tiny_text: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tiny_text, encoding="utf-8")
    return path


def documented() -> Iterator[tuple[str, str]]:
    """The benchmarks' command lines in README and docs, by the name of the benchmark."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for found in re.finditer(r"python -m benchmarks\.(\w+)([^`#\n]*)", page.read_text("utf-8")):
            yield found[1], found[2].strip(" ),.")


def test_benchmarks_are_all_here():
    helpers = {"__init__", "__main__", "evolve_parts", "flags", "made_up"}
    helpers |= {"rival", "shown", "subject"}
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files - helpers == set(BENCHMARKS)


@pytest.mark.parametrize("name", [*BENCHMARKS, "__main__"])
def test_help_needs_no_model(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gpprune.prune.model.load.locate", None)
    with pytest.raises(SystemExit) as ended:
        main_of(name)(["--help"])
    assert ended.value.code == 0
    assert "usage: python -m benchmarks" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "line"), sorted(set(documented())))
def test_documented_command_lines_are_understood(name: str, line: str):
    with pytest.raises(SystemExit) as ended:  # --help comes last: what is before it is checked
        main_of(name)([*shlex.split(line), "--help"])
    assert ended.value.code == 0


# The rival takes zscore as published code does, of a single number too.
@pytest.mark.filterwarnings("ignore:std.*degrees of freedom")
def test_kernels_are_held_against_eager_trees(ran: Ran):
    said = ran("kernels", "--size", 64, "--count", 2, "--backends", "blocked", "machine")
    assert "blocked ms  ratio" in said
    assert re.search(r"^machine: median speed-up over eager \d+\.\d\d;", said, re.MULTILINE)


def test_masks_are_held_against_sorts_and_equal_theirs(ran: Ran):
    said = ran("masks", "--rows", 64, "--columns", 128, "--cases", 20)
    assert len(re.findall(r"\d+\.\d\d times as long as gpprune", said)) == 6
    assert said.count("20 of 20 masks with ties, constants and infinities equal") == 3


def test_stages_are_each_given_their_seconds(ran: Ran):
    found = ran("stages", "--samples", 2, "--length", 16, "--blocks", 2, "--hidden", 36)
    assert len(re.findall(r" \d+\.\d\d ", found)) == 7
    assert "kron-admm, corrected" in found


@pytest.mark.slow
def test_memory_is_held_against_that_of_fewer_blocks(ran: Ran):
    small = ("--hidden", 64, "--blocks", 1, "--times", 2, "--length", 16)
    for update in ("none", "admm"):
        found = ran("memory", *small, "--update", update)
        assert re.search(r"1 blocks: +[-.0-9]+ MiB.*\n +2 blocks: .*\n2 times .* the memory", found)


def test_a_streamed_model_is_pruned_under_a_limit(ran: Ran, tiny_model_dir: Path):
    small = ("--hidden", 64, "--inner", 96, "--blocks", 2, "--heads", 2, "--limit", 40)
    given = ("--samples", 1, "--length", 32, "--patterns", "2:4", "--tokenizer", tiny_model_dir)
    said = ran("streaming", *small, *given)
    assert re.search(r"^2:4: 34,816 of 69,632 weights are 0, at most .* s a block$", said, re.M)
    assert re.search(r"^in memory: 34,816 of 69,632 weights are 0, at most", said, re.MULTILINE)


def test_bandwidth_is_held_against_a_copy(ran: Ran):
    said = ran("bandwidth", "--device", "cpu", "--size", 64, "--backends", "blocked")
    assert re.search(r"^wanda +\d+ +\d+\.\d +\d+\.\d +\d+\.\d\d$", said, re.MULTILINE)


def test_distinct_tells_trees_apart(ran: Ran, tiny_model_dir: Path):
    flags = ("--model", tiny_model_dir, "--layer", LAYER, "--count", 30, "--length", 64)
    said = ran("distinct", *flags)
    counts = [int(found) for found in re.findall(r"distinct by \w+ +(\d+)", said)]
    assert len(counts) == 4
    assert counts == sorted(counts, reverse=True)
    assert "evaluations saved" in said
    assert said.count(" 0 of them false") == 2


def test_distinct_names_a_layer_that_is_missing(ran: Ran, tiny_model_dir: Path):
    with pytest.raises(UsageError, match=r"no layer 'head'.*such as 'model\.layers\.0"):
        ran("distinct", "--model", tiny_model_dir, "--layer", "head", "--length", 64)


def test_search_is_held_against_eager_trees_and_sorts(ran: Ran, tiny_model_dir: Path):
    flags = ("--model", tiny_model_dir, "--count", 4, "--sample", 2, "--length", 64)
    said = ran("search", *flags, "--layers", 3)
    assert "4 formulas over 3 layers" in said
    assert re.search(r"of these the first 2: .* ratio \d+\.\d\d", said)


def test_backends_are_held_against_the_chooser(ran: Ran, tiny_model_dir: Path):
    flags = ("--model", tiny_model_dir, "--formulas", 2, "--passes", 1, "--layers", 2)
    said = ran("backends", *flags, "--backends", "blocked")
    assert "one pass of 2 layers each" in said
    assert re.search(r"blocked +│ +\d+\.\d │ +\d+\.\d │ +1\.00 │ +1\.00", said)


def test_candidates_are_held_against_the_published_loop(ran: Ran, tiny_model_dir: Path):
    said = ran("candidates", "--model", tiny_model_dir, "--windows", 2, "--length", 64)
    assert re.search(r"eager tree, stable sorts, float32 \d+  ratio \d+\.\d\d", said)


def test_judging_is_held_against_the_plain_model_and_the_peak(ran: Ran, tiny_model_dir: Path):
    said = ran("roofline", "--model", tiny_model_dir, "--length", 64, "--passes", 1)
    assert re.search(r"the peak is \d+\.\d{3} TFLOPS", said)
    figures = r" +│ +\d+ │ +\d+\.\d\d │ +\d+\.\d\d │"
    assert re.search(rf"transformers, float32{figures}", said)
    assert re.search(rf"gpprune, b?float\d\d{figures}", said)


def test_workers_are_held_against_those_that_wait(ran: Ran):
    said = ran("overlap", "--workers", 2, "--candidates", 12, "--seconds", 0.01)
    for offspring, overlap in ((12, 0), (12, 1), (12, 2), (1, 4)):
        figures = r" │ +\d+ │ +\d+\.\d │ +\d+% │ +\d+\.\d\d │"
        assert re.search(rf"│ 2 +│ +{offspring} │ +{overlap}{figures}", said)


def test_what_is_judged_by_is_held_against_test_text(
    ran: Ran, tiny_model_dir: Path, tiny_text: str, tmp_path: Path
):
    (tmp_path / "text.txt").write_text(tiny_text, encoding="utf-8")
    text = str(tmp_path / "text.txt")
    texts = gpprune.Texts(text, text, windows=4, window_length=48, calibration_samples=2)
    goal = gpprune.MetricGoal(texts, str(tiny_model_dir), dtype="float32")
    settings = gpprune.SearchSettings(population=8, offspring=8, generations=1, seed=4)
    gpprune.discover(goal, out=tmp_path / "run", settings=settings, rivals="best", winners=1)
    how = ("--formulas", 4, "--windows", "4x48", "2x16-spread", "--losses", "kl")
    said = ran("ranking", tmp_path / "run", *how)
    assert "4 formulas, " in said
    figures = r" +│ +-?[01]\.\d\d │ +-?[01]\.\d\d │ +\d+\.\d %"
    for name in ("next-token loss, 4 of 48, the first", "kl, 2 of 16, spread"):
        assert re.search(rf"{name}{figures}", said)
    assert re.search(rf"the other half of the test text{figures}", said)


def test_a_race_is_replayed_by_each_rule(ran: Ran, tiny_model_dir: Path, tmp_path: Path):
    how = (tmp_path / "run", "--model", tiny_model_dir, "--seconds", 4, "--kind", "allocation")
    said = ran("replay", *how)
    assert re.search(r"\d+ offspring of a search for allocations, 6 windows in all", said)
    for rule in ("own variance, from 2 windows", "usual weighed in, from 1 window"):
        assert re.search(rf"{rule} +│ +[1-6]\.\d\d │ +\d+ of \d+", said)
    assert ran("replay", *how) == said  # of the same run


@pytest.mark.parametrize("wrong", ["8", "x512", "8x512-all", "0x512"])
def test_windows_that_are_none_are_refused(ran: Ran, wrong: str, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        ran("ranking", tmp_path, "--windows", wrong)
    assert ended.value.code == 2


def test_loops_are_held_against_searches(ran: Ran, tiny_model_dir: Path):
    small = ("--samples", 2, "--windows", 2, "--length", 64, "--candidates", 1, "--seconds", 1)
    said = ran("loops", "--model", tiny_model_dir, *small, "--ours", 3, 32, 2)
    for kind, rival in (("allocation", "DSA"), ("metric", "Pruner-Zero")):
        assert re.search(rf"{kind} +│ +\d+ │ +{rival}( │ +\d+ │ +\d+\.\d){{2}}", said)


def test_duels_are_held_and_gone_on_with(ran: Ran, tiny_model_dir: Path, tmp_path: Path):
    small = ("--samples", 2, "--windows", 2, "--length", 64, "--ours", 2, 64, 2, "--seeds", 0)
    flags = ("--model", tiny_model_dir, *small, "--keep", tmp_path)
    said = ran("duels", *flags, "--seconds", 3)
    for kind, rival in (("allocation", "DSA"), ("metric", "Pruner-Zero")):
        assert re.search(rf"{kind} +│ +0 │ +{rival} │ +\d+ │ +\d+\.\d\d", said)
    assert re.search(r"gpprune's is better on test text in \d of 2", said)
    assert len([*tmp_path.iterdir()]) == 4
    assert ran("duels", *flags, "--seconds", 3) == said
    with pytest.raises(SystemExit):
        ran("duels", *flags, "--seconds", 4)


def test_seeds_search_judge_and_go_on(
    ran: Ran, tmp_path: Path, tiny_model_dir: Path, text_file: Path
):
    small = ("--windows", 2, "--length", 64, "--samples", 2, "--population", 9, "--offspring", 4)
    flags = ("--model", tiny_model_dir, "--text", text_file, "--seeds", 0, *small)
    runs = tmp_path / "runs"
    first = ran("seeds", runs, *flags, "--generations", 1)
    assert {path.name for path in runs.iterdir()} == {"evolution-0", "random-0"}
    for name in ("evolution-0", "random-0", "uniform", "dsa"):
        assert re.search(rf"│ {name} +│.*│ +\d+\.\d\d │", first), name
    more = ran("seeds", runs, *flags, "--generations", 2, "--strategies", "evolution")
    assert candidates(more, "evolution-0") > candidates(first, "evolution-0")
    with pytest.raises(UsageError, match="of another sparsity"):
        ran("seeds", runs, *flags, "--sparsity", 0.5)


def candidates(said: str, name: str) -> int:
    found = re.search(rf"│ {name} +│ +(\d+) ", said)
    assert found is not None
    return int(found[1])


@pytest.mark.skipif("ggT" not in MEASURERS, reason="nothing measures curvature")
def test_updates_are_held_against_sparsegpts(ran: Ran, tiny_model_dir: Path):
    said = ran("updates", "--model", tiny_model_dir, "--layers", 3, "--length", 64, "--samples", 4)
    assert "3 layers" in said
    assert re.search(r"sparsegpt +│ +\d+\.\d+ │ +1\.00 │ +\d+\.\d+ │ +1\.000", said)
    for name in ("refit", "least-squares", r"least-squares\(3\)", "surgeon"):
        assert re.search(rf"{name} +│ +\d+\.\d+ │ +\d+\.\d+ │ +\d+\.\d+ │ +\d", said), name


@pytest.mark.parametrize(
    ("name", "says"), [("swaps", "changes no weight"), ("refit(0)", "how many steps")]
)
def test_updates_that_cannot_be_held_against_it_are_said(
    name: str, says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        updates.main(["--updates", name])
    assert says in capsys.readouterr().err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text('{"metric": "mul(abs(W), X)", "sparsity": 0.5}', encoding="utf-8")
    return path


def test_small_models_are_trained_once(ran: Ran, text_file: Path, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text()[:4000])
    flags = [tmp_path, "--text", text, "--epochs", 1, "--batch", 1]
    printed = ran("small_models", *flags, "--families", "llama", "mixtral")
    assert "llama" in printed and "mixtral" in printed
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
    assert "gpt2" in ran("small_models", *flags)
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
    assert (tmp_path / "gpt2" / "model.safetensors").is_file()


def test_protocol_takes_the_stored_tokens():
    tokens = protocol.stored_tokens(protocol.TOKENS)
    assert {name: found.dtype for name, found in tokens.items()} == {
        "calibration": torch.int64,
        "evaluation": torch.int64,
        "c4": torch.int64,
    }


@pytest.fixture
def protocol_flags(
    recipe: Path, tmp_path: Path, tiny_model_dir: Path, tiny_tokens: torch.Tensor
) -> list[str]:
    stored = tmp_path / "tokens.safetensors"
    grid = tiny_tokens[: 8 * 64].view(8, 64).to(torch.int32)
    save_file({"calibration": grid[:4].clone(), "evaluation": grid[4:].clone()}, stored)
    return [str(recipe), "--model", str(tiny_model_dir), "--tokens", str(stored)]


def test_protocol_judges_recipes(protocol_flags: list[str], capsys: pytest.CaptureFixture[str]):
    protocol.main(protocol_flags)
    assert re.search(r"0\.5 │ +none │ +\d+\.\d\d", capsys.readouterr().out)


@pytest.mark.parametrize("order", ["dense", "sequential"])
def test_protocol_states_more_than_recipes_do(
    order: str, protocol_flags: list[str], capsys: pytest.CaptureFixture[str]
):
    figures = []
    flags = [*protocol_flags, "--order", order, "--sparsity", "0.8", "--update", "least-squares"]
    for more in ([], ["--synthetic-samples", "40"], ["--shots", "2"], ["--recover", "1"]):
        protocol.main([*flags, *more])
        figures += re.findall(r"│ +least-squares │ +(\S+)", capsys.readouterr().out)
    assert len(figures) == 4
    assert figures[0] not in figures[1:]


def test_protocol_keeps_the_shots_of_one_recipe(
    protocol_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    flags = [*protocol_flags, "--shots", "2", "--keep", str(tmp_path / "kept")]
    protocol.main(flags)
    first = capsys.readouterr().out.splitlines()[0].split()
    assert list((tmp_path / "kept").iterdir())
    protocol.main(flags)
    assert capsys.readouterr().out.splitlines()[0].split()[:-1] == first[:-1]  # but for seconds
    with pytest.raises(SystemExit):
        protocol.main([*flags, "--sparsity", "0.5", "0.6"])


def test_protocol_permutes_channels(
    protocol_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "recipe.json").write_text('{"metric": "magnitude", "pattern": "2:4"}')
    protocol.main([*protocol_flags, "--permute", "none", "metric", "--order", "dense"])
    rows = re.findall(r"│ +(none|metric) │ +none │ +(\S+)", capsys.readouterr().out)
    assert [name for name, _ in rows] == ["none", "metric"]
    assert rows[0][1] != rows[1][1]


def test_structures_are_taken_out_and_timed_beside_the_dense_model(
    protocol_flags: list[str], tmp_path: Path
):
    (tmp_path / "recipe.json").write_text(
        '{"metric": "surgeon-columns", "pattern": "mlp", "sparsity": 0.2}'
    )
    rows, picture = tmp_path / "rows.jsonl", tmp_path / "picture"
    flags = [*protocol_flags, "--rows", str(rows), "--picture", str(picture)]
    structures.main([*flags, "--sparsity", "0.1", "0.3"])
    structures.main([*flags, "--update", "least-squares", "--shots", "2"])
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(row["recipe"], row["how"], row["sparsity"]) for row in found] == [
        ("dense", "", 0.0),
        ("recipe", "none", 0.1),
        ("recipe", "none", 0.3),
        ("recipe", "least-squares, 2 shots", 0.2),
    ]
    shares = [row["parameters"] for row in found]
    assert shares[0] == 1 > shares[1] > shares[3] > shares[2] > 0.5
    assert found[0]["perplexity"] != found[1]["perplexity"] != found[2]["perplexity"]
    assert all(row["speed"] > 0 for row in found)
    before = rows.read_bytes()
    structures.main([*flags, "--sparsity", "0.1", "0.3"])  # nothing is done again
    assert rows.read_bytes() == before
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the protocol's progress."""
    labels: list[str] = []

    @contextmanager
    def telling() -> Iterator[Callable[[str, int, int], None]]:
        yield lambda label, *_: labels.append(label)

    monkeypatch.setattr(protocol, "progress", telling)
    return labels


def test_protocol_writes_once_what_recipes_share(protocol_flags: list[str], told: list[str]):
    flags = [*protocol_flags, "--synthetic-samples", "2", "--sparsity"]
    protocol.main([*flags, "0.5"])
    once = told.count("writing calibration text")
    told.clear()
    protocol.main([*flags, "0.4", "0.6"])
    assert told.count("writing calibration text") == once > 0
    told.clear()
    protocol.main([*protocol_flags, "--synthetic-samples", "4"])
    twice = told.count("writing calibration text")
    told.clear()
    protocol.main([*flags, "0.4", "0.6", "--shots", "2"])
    assert told.count("writing calibration text") == twice


def test_protocol_refuses_before_it_writes(
    protocol_flags: list[str], recipe: Path, told: list[str]
):
    recipe.write_text('{"metric": "wanda", "pattern": "2:5"}')
    with pytest.raises(UsageError, match="2:5"):
        protocol.main([*protocol_flags, "--synthetic-samples", "2"])
    assert "writing calibration text" not in told


def test_protocol_varies_recipes_on_one_calibration(
    protocol_flags: list[str], capsys: pytest.CaptureFixture[str]
):
    varied = ["--sparsity", "0.4", "0.6", "--update", "none", "least-squares"]
    shown = []
    for order in ("dense", "dense", "sequential"):
        protocol.main([*protocol_flags, *varied, "--order", order])
        shown.append(re.findall(r"│ +(0\.\d) │ +(\S+) │ +(\d+\.\d\d)", capsys.readouterr().out))
        varied = varied if len(shown) == 2 else varied[:-1]  # without least-squares
    both, alone, sequential = shown
    assert [row[:2] for row in both] == [
        (sparsity, update) for sparsity in ("0.4", "0.6") for update in ("none", "least-squares")
    ]
    assert alone == both[::2]
    assert [row[:2] for row in sequential] == [row[:2] for row in alone]


@pytest.mark.slow
def test_evolve_times_two_checkouts(ran: Ran, tiny_model_dir: Path, text_file: Path):
    small = ("--population", 4, "--windows", 2, "--window-length", 64, "--calibration-samples", 2)
    flags = ("--model", tiny_model_dir, "--text", text_file, "--pairs", 1, "--generations", 0)
    said = ran("evolve", ROOT, *flags, *small, "--no-warm-up")
    for part in ("ready", "search", "judging", "report", "whole"):
        found = re.search(
            rf"^{part} +ratio, this to other: (\S+)  median (\S+)$", said, re.MULTILINE
        )
        assert found is not None, part
        assert found[1] == found[2]
    assert "different work" not in said


def test_evolve_names_a_folder_that_is_no_checkout(tmp_path: Path):
    with pytest.raises(UsageError, match="is no checkout"):
        evolve.main([str(tmp_path)])
