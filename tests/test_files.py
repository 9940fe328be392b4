from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpprune.errors import UsageError
from gpprune.files import expanded, file_to_write, whole_file, whole_folder


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with whole_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("content")
        assert not target.exists()
    assert (target / "sub" / "file").read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


def test_the_later_of_two_writers_leaves_the_earlier_ones_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(OSError), whole_folder(target) as late:
        (late / "file").write_text("late")
        with whole_folder(target) as early:
            (early / "file").write_text("early")
    assert (target / "file").read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_a_kill_in_the_middle_leaves_no_target(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from gpprune.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half')\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
    )
    target = tmp_path / "target"
    command = [sys.executable, "-c", code, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not target.exists()
    with whole_folder(target) as folder:
        (folder / "file").write_text("whole")
    assert (target / "file").read_text() == "whole"


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_what_is_published_obeys_the_umask(tmp_path: Path, mask: int) -> None:
    target = tmp_path / "target"
    with _umask(mask):
        with whole_folder(target) as folder:
            (folder / "sub").mkdir(mode=0o700)
            (folder / "sub" / "private").write_text("made by a library that ignores the umask")
            (folder / "sub" / "private").chmod(0o600)
            (folder / "tool").write_text("#!/bin/sh")
            (folder / "tool").chmod(0o700)
        whole_file(tmp_path / "file", "content")
    assert _mode(target) == _mode(target / "sub") == _mode(target / "tool") == 0o777 & ~mask
    assert _mode(target / "sub" / "private") == _mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.parametrize("name", ["a**b", "x*", "[ab]", "who?", "a\\b"])
def test_a_name_may_hold_any_character(tmp_path: Path, name: str) -> None:
    with whole_folder(tmp_path / name) as folder:
        (folder / "file").write_text("content")
    whole_file(tmp_path / f"{name}.json", "content")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name}.json"])


def test_the_abandoned_folder_of_another_target_is_left(tmp_path: Path) -> None:
    others, own = tmp_path / ".xyz.partial-1", tmp_path / ".x*.partial-1"
    for folder in (others, own):
        folder.mkdir()
        os.utime(folder, (0, 0))
    with whole_folder(tmp_path / "x*"):
        pass
    assert others.is_dir() and not own.exists()


def test_the_longest_name_is_written(tmp_path: Path) -> None:
    with whole_folder(tmp_path / ("n" * 255)) as folder:
        (folder / "file").write_text("content")
    whole_file(tmp_path / ("m" * 255), "content")
    assert sorted(len(path.name) for path in tmp_path.iterdir()) == [255, 255]


def test_a_failure_leaves_no_parents_that_it_made(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), whole_folder(tmp_path / "deep" / "er" / "out"):
        raise OSError("no room")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["näheres\n", b"\x00\xff\r\n"])
def test_a_file_is_written_as_it_is(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "deep" / "file"
    for _ in range(2):  # the second time it is there
        whole_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_writer_with_names_and_modes_of_its_own_makes_a_usual_file(
    tmp_path: Path, mask: int
) -> None:
    path = tmp_path / "deep" / "file"
    for content in ("one", "other"):  # the second time it is there
        with _umask(mask), file_to_write(path) as partial:
            (partial.parent / ".tmpXYZ").write_text(content)
            (partial.parent / ".tmpXYZ").chmod(0o600)
            (partial.parent / ".tmpXYZ").rename(partial)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == content and _mode(path) == 0o666 & ~mask
        assert list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError), file_to_write(path):
        pass  # nothing is written
    with pytest.raises(ValueError), file_to_write(path) as partial:
        partial.write_text("half")
        raise ValueError
    assert path.read_text() == "other" and list(path.parent.iterdir()) == [path]


def test_no_link_is_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "report.json"
    for name in ("report.json", "report.json.part", ".report.json.partial-"):
        (tmp_path / name).symlink_to(victim)
    whole_file(link, "report")
    assert victim.read_text() == "mine"
    assert not link.is_symlink() and link.read_text() == "report"


def test_a_file_that_cannot_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("mine")
    with pytest.raises(OSError):
        whole_file(tmp_path / "folder", "content")
    with pytest.raises(OSError):
        whole_file(tmp_path / "folder" / "inside" / "file", "content")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    assert (tmp_path / "folder" / "inside").read_text() == "mine"


def test_a_file_for_which_there_is_no_room_keeps_its_old_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from gpprune.files import out_of_room, whole_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    whole_file(Path(sys.argv[1]), 'new' * 1000)\n"
        "except OSError as error:\n    print(out_of_room(error))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/run") == tmp_path / "run"
    assert expanded(Path("run")) == Path("run")
    with pytest.raises(UsageError, match="~no-such-user-x/run"):
        expanded("~no-such-user-x/run")
