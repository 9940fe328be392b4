from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpprune.errors import UsageError
from gpprune.evals import SPLITS, calibration_samples, read_text, tokenize, windows
from gpprune.evals.text import join_rows


@pytest.mark.parametrize("split", SPLITS)
def test_packaged_text_has_no_blank_lines_and_is_long_enough(split: str):
    text = read_text("wikitext2", split)
    assert all(line.strip() for line in text.split("\n"))
    assert "<unk>" not in text and "\r" not in text
    assert len(text) > 300_000


def test_packaged_text_begins_as_wikitext_does():
    assert read_text("wikitext2", "test").startswith(" = Robert Boulter = \n Robert Boulter is ")
    assert read_text("wikitext2", "validation").startswith(" = Homarus gammarus = \n")
    assert read_text("wikitext2", "calibration").startswith(" = Valkyria Chronicles III = \n")


def prose_and_titles(split: str) -> tuple[set[str], set[str]]:
    """A packaged part's prose lines of more than 40 characters, and its article titles."""
    lines = read_text("wikitext2", split).split("\n")
    prose = {line for line in lines if len(line) > 40 and not line.startswith(" = ")}
    titles = {line for line in lines if line.startswith(" = ") and not line.startswith(" = = ")}
    return prose, titles


def test_packaged_splits_do_not_overlap():
    # Headings of sections are left out: two articles on animals may share one
    # (" = = = Microscopic characteristics = = = " does occur twice). Titles may not.
    parts = [prose_and_titles(split) for split in SPLITS]
    for index, (prose, titles) in enumerate(parts):
        assert len(prose) > 300 and len(titles) > 15
        for other_prose, other_titles in parts[index + 1 :]:
            assert not prose & other_prose
            assert not titles & other_titles


def test_unknown_split_names_the_splits():
    with pytest.raises(UsageError, match=r"'train'.*calibration, validation, test"):
        read_text("wikitext2", "train")


@pytest.mark.parametrize("split", SPLITS)
def test_local_file_is_read_whole(tmp_path: Path, split: str):
    file = tmp_path / "some.txt"
    file.write_bytes("\ufeffEin Satz.\r\n\r\nNoch einer – fertig.\n".encode())
    assert read_text(str(file), split) == "Ein Satz.\n\nNoch einer – fertig.\n"


def test_local_file_is_found_in_the_working_directory(tmp_path: Path, monkeypatch):
    (tmp_path / "plain").write_text("words", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert read_text("plain", "test") == "words"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b" \n\n", "empty"), (b"a\x00b", "zero bytes"), (b"\xff\xfe\xfa", "UTF-8")],
)
def test_unusable_file_is_named(tmp_path: Path, content: bytes, reason: str):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"bad\.txt.*{reason}"):
        read_text(str(file), "test")


@pytest.mark.parametrize("spec", ["missing.txt", "./missing", "/no/such/file", "~/no-such-file"])
def test_missing_file_is_named(spec: str):
    with pytest.raises(UsageError, match=f"no text file {spec!r}"):
        read_text(spec, "test")


@pytest.mark.parametrize("spec", ["./a\0b", "./" + "a" * 5000, "~nobody-of-that-name/x"])
def test_names_that_no_file_can_have_are_usage_errors(spec: str):
    with pytest.raises(UsageError, match="file"):
        read_text(spec, "test")


def test_a_text_without_a_name_is_a_usage_error():
    with pytest.raises(UsageError, match="no name"):
        read_text("", "test")


def test_directory_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match=f"{tmp_path.name}.*directory"):
        read_text(str(tmp_path), "test")


def test_unreachable_data_sets_are_one_sentence_without_a_traceback():
    code = (
        "import sys\n"
        "from gpprune.evals import read_text\n"
        "from gpprune.errors import GppruneError\n"
        "for spec in sys.argv[1:]:\n"
        "    try:\n"
        "        read_text(spec, 'test')\n"
        "    except GppruneError as error:\n"
        "        print(error)\n"
    )
    specs = ["nobody/nothing:plain", "a b c!", "a" * 5000]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *specs],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(specs), done.stderr
    for spec, line in zip(specs, lines, strict=True):
        assert line.startswith(f"the text {spec!r} is no local file"), line


def test_rows_of_a_data_set_become_the_packaged_form():
    text = read_text("wikitext2", "test")[:5000]
    rows = [part for line in text.split("\n") for part in ("", f"{line}\n", " \n", None)]
    assert join_rows(rows, limit=10**9) == text


def test_rows_are_read_no_further_than_the_limit():
    def rows():
        yield from ["twelve chars", "twelve chars"]
        raise RuntimeError("read too far")

    assert join_rows(rows(), limit=20) == "twelve chars\ntwelve chars"


def test_tokenize_takes_the_whole_text_without_special_tokens(tiny_text, tiny_tokenizer, recwarn):
    tokens = tokenize(tiny_text, tiny_tokenizer)
    assert tokens.dtype == torch.int64 and tokens.ndim == 1
    assert tiny_tokenizer.decode(tokens.tolist()) == tiny_text
    assert not set(tokens.tolist()) & set(tiny_tokenizer.all_special_ids)
    assert not recwarn.list


@given(total=st.integers(2, 300), length=st.integers(2, 40))
def test_windows_are_the_first_tokens_in_order(total: int, length: int):
    tokens = torch.arange(total)
    if total < length:
        with pytest.raises(UsageError, match=f"{total} tokens"):
            windows(tokens, None, length)
        return
    cut = windows(tokens, None, length)
    assert cut.shape == (total // length, length)
    assert torch.equal(cut.flatten(), tokens[: cut.numel()])
    assert torch.equal(windows(tokens, 1, length), cut[:1])
    with pytest.raises(UsageError, match=f"makes {len(cut)} windows of {length}"):
        windows(tokens, len(cut) + 1, length)


@given(count=st.integers(1, 30), more=st.integers(0, 40), length=st.integers(2, 9))
def test_spread_windows_are_at_even_distances_over_the_text(
    count: int, more: int, length: int
) -> None:
    available = count + more
    tokens = torch.arange(available * length + 1)
    chosen = windows(tokens, count, length, spread=True)
    assert chosen.shape == (count, length)
    places = chosen[:, 0] / length
    assert torch.equal(chosen, tokens[: available * length].view(-1, length)[places.long()])
    gaps = places.diff()
    assert count == 1 or gaps.max() - gaps.min() <= 1
    before, after = float(places[0]), available - 1 - float(places[-1])
    assert abs(before - after) <= 1
    assert torch.equal(windows(tokens, available, length, spread=True).flatten(), tokens[:-1])


@pytest.mark.parametrize(("count", "length"), [(0, 4), (-1, 4), (2, 1), (2, 0), (2, -3)])
def test_absurd_windows_are_usage_errors(count: int, length: int):
    with pytest.raises(UsageError):
        windows(torch.arange(100), count, length)
    with pytest.raises(UsageError):
        calibration_samples(torch.arange(100), count, length, seed=0)


@given(
    total=st.integers(4, 500),
    length=st.integers(2, 50),
    count=st.integers(1, 9),
    seed=st.integers(),
)
def test_calibration_samples_are_stretches_of_the_text(
    total: int, length: int, count: int, seed: int
):
    tokens = torch.arange(total)
    if total <= length:
        with pytest.raises(UsageError, match=f"{total} tokens"):
            calibration_samples(tokens, count, length, seed)
        return
    samples = calibration_samples(tokens, count, length, seed)
    assert samples.shape == (count, length)
    assert torch.equal(samples, samples[:, :1] + torch.arange(length))
    assert torch.equal(samples, calibration_samples(tokens, count, length, seed))


def test_calibration_samples_start_where_wandas_code_starts_them():
    state = random.getstate()
    samples = calibration_samples(torch.arange(150_000), 8, 1024, seed=0)
    assert random.getstate() == state
    draw = random.Random(0)
    wanted = [draw.randint(0, 150_000 - 1024 - 1) for _ in range(8)]
    assert samples[:, 0].tolist() == wanted
