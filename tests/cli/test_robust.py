"""The command line in adverse circumstances: odd paths, odd files, a second Ctrl-C, no memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gpprune
from gpprune.cli import run
from gpprune.gp import Outcome, RunDirectory, SearchSettings
from gpprune.gp.outcome import Candidate, Verdict
from gpprune.primitives import METRIC, text_digest
from gpprune.prune import load_model, use_device


@pytest.fixture
def finished(
    small: list[str], judged: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A finished run of a small search."""
    out = tmp_path / "run"
    flags = [*small, *judged, "--generations", "0", "--population", "2", "--rivals", "best"]
    assert run(["evolve", "metric", *flags, "--dtype", "float32", "--out", str(out)]) == 0
    capsys.readouterr()
    return out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"gpprune {gpprune.__version__}\n"


@pytest.mark.parametrize("name", ["cuda:97", "meta", "nonsense", ""])
def test_a_device_that_is_not_here_is_said(
    name: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run(["prune", "--model", str(tiny_model_dir), "--out", out, "--device", name]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"there is no device '{name}' here: choose from auto, cpu" in said
    assert not (tmp_path / "out").exists()


def test_models_are_loaded_where_is_asked_for(tiny_model_dir: Path) -> None:
    seen: list[torch.device] = []

    def note(tensor: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        seen.append(device)
        return tensor

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        patched.setattr(torch.nn.Module, "to", note)
        for name, wanted in (("auto", "cuda"), ("cpu", "cpu"), ("auto", "cuda")):
            use_device(name)
            load_model(str(tiny_model_dir))
            assert seen.pop() == torch.device(wanted)


def test_a_shell_can_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert "--install-completion" in capsys.readouterr().out


def test_a_home_directory_is_meant_as_one(
    small: list[str],
    judged: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(home))
    flags = [*small, *judged, "--generations", "0", "--population", "2", "--rivals", "best"]
    assert run(["evolve", "metric", *flags, "--out", "~/run"]) == 0
    assert (home / "run" / "report.json").is_file()
    assert run(["report", "~/run"]) == 0
    assert run(["resume", "~/run", "--rivals", "best"]) == 0
    recipe = gpprune.Recipe(metric="magnitude", sparsity=0.5)
    recipe.write(home / "recipe.json")
    assert run(["prune", *small, "--recipe", "~/recipe.json", "--out", "~/pruned"]) == 0
    assert (home / "pruned" / "config.json").is_file()
    assert run(["allocate", "uniform", *small, "--plot", "~/picture"]) == 0
    assert (home / "picture.svg").is_file()
    assert list((tmp_path / "here").iterdir()) == []
    capsys.readouterr()


@pytest.mark.parametrize(
    "command",
    [
        ["evolve", "metric", "--out", "~nosuch/run"],
        ["resume", "~nosuch/run"],
        ["report", "~nosuch/run"],
        ["prune", "--recipe", "~nosuch/recipe.json", "--out", "x"],
        ["simplify", "~nosuch/tree.json"],
        ["allocate", "uniform", "--plot", "~nosuch/picture"],
    ],
    ids=" ".join,
)
def test_a_home_directory_that_is_none_is_said(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    assert "home directory that does not exist" in " ".join(capsys.readouterr().err.split())


def test_a_picture_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpprune.cli.allocating.share_out", None)
    monkeypatch.setattr("gpprune.cli.runs.summarise", None)
    (tmp_path / "file").write_text("no folder")
    for command in (["allocate", "uniform"], ["report", "runs/mine"]):
        assert run([*command, "--plot", str(tmp_path / "file" / "picture")]) == 2
        assert "is not a directory that you may write to" in " ".join(
            capsys.readouterr().err.split()
        )


@pytest.mark.parametrize("command", [["simplify"], ["allocate"], ["score", "allocations"]])
def test_a_run_that_is_not_there_is_said(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "runs/none"]) == 2
    assert "no run directory 'runs/none'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "command",
    [
        ["prune", "--allocation", "atp", "--pattern", "2:4", "--out", "x"],
        ["score", "allocations", "atp(0.3)", "--pattern", "2:4"],
        ["allocate", "besa", "--pattern", "1:4"],
        ["evolve", "allocation", "--sparsity", "0.5", "--pattern", "2:4", "--out", "x"],
        ["evolve", "joint", "--pattern", "2:4", "--out", "x"],
    ],
    ids=" ".join,
)
def test_a_pattern_without_room_for_an_allocation_is_said(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    assert "prunes every layer alike" in " ".join(capsys.readouterr().err.split())


def test_simplify_shows_what_evolved_once_each(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simplify", str(finished), "--format", "json"]) == 0
    assert "seed" in json.loads(capsys.readouterr().out)[0]["name"]  # nothing has evolved yet
    for text in ("mul(sqr(W), pow(X, 0.7))", "mul(sqr(W), pow(X, 0.8))", "mul(sqr(W), Y)"):
        _evolve_one(finished, text=text)
    assert run(["simplify", str(finished), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2
    assert "mul(sqr(W), Y)" in {row["formula"] for row in rows}


def test_a_report_goes_where_no_link_points(finished: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (finished / "report.json.part").symlink_to(victim)
    (finished / "report.json").unlink()
    (finished / "report.json").symlink_to(victim)
    assert run(["resume", str(finished), "--rivals", "best"]) == 0
    assert victim.read_text() == "mine"
    assert json.loads((finished / "report.json").read_text())["goal"] == "metric"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "[]",
        lambda text: text[: len(text) // 2],
        lambda text: '{"formulas": [1, 2]}',
        lambda text: '{"formulas": 5}',
        lambda text: "[" * 100_000,
    ],
)
def test_a_damaged_report_is_said(
    finished: Path, spoil: object, capsys: pytest.CaptureFixture[str]
) -> None:
    _evolve_one(finished)
    report = finished / "report.json"
    assert callable(spoil)
    report.write_text(spoil(report.read_text()))
    assert run(["report", str(finished)]) == 1
    told = capsys.readouterr().err
    assert "make it anew" in " ".join(told.split())
    assert "Traceback" not in told


def test_a_text_where_a_report_has_a_number_is_said(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _evolve_one(finished)
    rows = [{"name": "evolved 1", "formula": text, "test_perplexity": "twelve"}]
    (finished / "report.json").write_text(json.dumps({"formulas": rows}))
    assert run(["report", str(finished)]) == 1
    assert "'twelve', not a number" in " ".join(capsys.readouterr().err.split())


def _evolve_one(path: Path, origin: str = "crossover", text: str = "mul(sqr(W), sqr(X))") -> str:
    """Add a fully judged formula to a run, better than all; its text."""
    key = text_digest(text, METRIC)
    candidate = Candidate(key=key, text=text, origin=origin, generation=0)
    with RunDirectory.open(path) as opened:
        cases = max(outcome.cases for outcome in opened.outcomes())
        loss = 0.1 + 0.1 * len(opened.outcomes())
        verdict = Verdict(fitness=loss, losses=(loss,) * cases, full=True, reason=None, seconds=1.0)
        opened.record(Outcome.of(candidate, verdict))
    return text


def test_control_characters_of_a_run_do_not_reach_the_terminal(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _evolve_one(finished, "cross\x1b[31mover\x07\x9b")
    assert run(["simplify", str(finished)]) == 0
    assert run(["simplify", str(finished), "--format", "latex"]) == 0
    shown = capsys.readouterr().out
    assert "cross\\x1b[31mover\\x07\\x9b" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_a_name_of_control_characters_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["simplify", "mul(W\x1b]0;title\x07, X)"]) == 2
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().err)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_no_memory_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def raised(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("gpprune.cli.formulas.describe", raised)
    assert run(["simplify", "wanda"]) == 1
    assert capsys.readouterr().err.startswith("gpprune: out of memory")


def test_another_error_of_torch_is_not_taken_for_one_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raised(*_: object, **__: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("gpprune.cli.formulas.describe", raised)
    with pytest.raises(RuntimeError, match="a defect"):
        run(["simplify", "wanda"])


_SLOW = """
import os, signal, sys, time
import gpprune.cli
import gpprune.__main__ as entry

def run():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
        return 0
    finally:
        for pause in PAUSES:
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
        print("closed", flush=True)

gpprune.cli.run = run
entry.main()
"""


@pytest.mark.parametrize("pauses", [[], [0.0], [0.001, 0.01, 0.1]])
def test_a_second_ctrl_c_at_once_leaves_no_traceback(pauses: list[float]) -> None:
    code = _SLOW.replace("PAUSES", repr(pauses))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "closed\n"), done.stderr
    assert done.stderr == "gpprune: interrupted\n"


def test_a_second_ctrl_c_later_ends_at_once() -> None:
    code = _SLOW.replace("PAUSES", "[1.3]")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "gpprune: interrupted again, ended at once\n"


def test_an_ignored_interrupt_stays_ignored() -> None:
    code = _SLOW.replace("PAUSES", "[]").replace("time.sleep(30)", "time.sleep(0.1)")
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")


def test_what_a_model_keeps_is_said(
    tmp_path: Path, small: list[str], tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Llama 4 has most weights in experts that its code multiplies by all at once."""
    from tiny_families import tiny

    folder = tmp_path / "experts"
    model = tiny("llama4")
    model.resize_token_embeddings(512)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_model_dir / name).read_bytes())
    flags = ["--model", str(folder), *small[2:]]
    command = ["prune", *flags, "--metric", "magnitude", "--out", str(tmp_path / "out")]
    assert run(command) == 2  # half of all is more than what can go
    assert "give less than 0.31" in " ".join(capsys.readouterr().err.split())
    code = run([*command, "--sparsity", "0.2"])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "left alone" in " ".join(told.err.split())
    assert "all matrices of the blocks" in " ".join(told.out.split())
    record = json.loads((tmp_path / "out" / "gpprune_recipe.json").read_text())["report"]
    assert record["sparsity"] > 0.6
    assert record["blocks"]["sparsity"] == pytest.approx(0.2, abs=1e-4)
    assert record["blocks"]["left"]


def test_a_run_for_settings_of_another_kind_is_refused(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "toy", SearchSettings(), {"goal": "poem"}):
        pass
    assert run(["resume", str(tmp_path / "toy")]) == 1
    assert (tmp_path / "toy" / "run.db").is_file()
