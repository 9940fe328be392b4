"""Libraries in the cache folder: whole, one's own, built again where they are not."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpprune.compile.cpp import native

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="there is no C++ compiler")

FORTY_TWO = 'extern "C" void answer(long long* out) { *out = 42; }\n'
SEVEN = FORTY_TWO.replace("42", "7")
WRONG = "this is no C++\n"
STRANGER = 12345


def answer(source: str = FORTY_TWO) -> int | None:
    """What the library of a source says; None where it cannot be had."""
    found = native.functions(source, answer="p")
    if found is None:
        return None
    out = ctypes.c_int64()
    found[0](ctypes.addressof(out))
    return out.value


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache folder of the test's own."""
    use(monkeypatch, tmp_path / "cache")
    yield tmp_path / "cache"
    native.forget()


def use(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    native.forget()
    monkeypatch.setenv("GPPRUNE_CACHE", str(folder))


def library_in(cache: Path) -> Path:
    (library,) = (cache / "native").glob("*.so")
    return library


def strange(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a path look like another user's."""
    if os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


def cut(library: Path) -> None:
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def flip(library: Path) -> None:
    whole = bytearray(library.read_bytes())
    whole[len(whole) // 2] ^= 1
    library.write_bytes(whole)


def empty(library: Path) -> None:
    library.write_bytes(b"")


def without_digest(library: Path) -> None:
    library.with_suffix(".sha256").unlink()


def wrong_digest(library: Path) -> None:
    library.with_suffix(".sha256").write_text("0" * 64)


def no_text(library: Path) -> None:
    library.with_suffix(".sha256").write_bytes(b"\xff" * 64)


def replaced(library: Path) -> None:
    """A library that another process wrote between this one's library and its digest."""
    other = library.parent / "other"
    other.mkdir()
    (other / "source.cpp").write_text(SEVEN)
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, other / "source.cpp"], check=True)
    shutil.rmtree(other)


@pytest.mark.parametrize(
    "damage", [cut, flip, empty, without_digest, wrong_digest, no_text, replaced]
)
def test_a_damaged_library_is_built_again(
    damage: Callable[[Path], None], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loaded as it is, one that was cut short ends the process."""
    assert answer() == 42
    # elsewhere, since the loader knows a library by its path
    shutil.copytree(cache, tmp_path / "copy")
    damage(library_in(tmp_path / "copy"))
    use(monkeypatch, tmp_path / "copy")
    assert not native.is_built(FORTY_TWO)
    assert answer() == 42
    assert native.is_built(FORTY_TWO)


def test_the_folder_and_what_is_in_it_are_ones_own(cache: Path) -> None:
    (cache / "native").mkdir(parents=True)
    (cache / "native").chmod(0o777)
    before = os.umask(0)
    try:
        assert answer() == 42
    finally:
        os.umask(before)
    assert (cache / "native").stat().st_mode & 0o777 == 0o700
    for file in (cache / "native").iterdir():
        assert file.stat().st_mode & 0o022 == 0
    assert {file.suffix for file in (cache / "native").iterdir()} == {".so", ".sha256"}


def planted(cache: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> Path:
    """A cache folder with a library that gives another answer, whole and with its digest."""
    assert answer() == 42
    name = library_in(cache).name
    use(monkeypatch, elsewhere)
    assert answer(SEVEN) == 7
    target = elsewhere / "native" / name
    for file in list(target.parent.iterdir()):
        file.rename(target.with_suffix(file.suffix))
    native.forget()
    return target


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_library_is_not_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    strange(planted(cache, monkeypatch, tmp_path / "other"), monkeypatch)
    assert answer() == 42


def test_a_library_that_others_may_write_is_not_run(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planted(cache, monkeypatch, tmp_path / "other").chmod(0o666)
    assert answer() == 42


def test_another_users_folder_is_not_used_and_that_is_said_once(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = planted(cache, monkeypatch, tmp_path / "other")
    strange(library.parent, monkeypatch)
    assert answer() == 42
    assert answer(SEVEN) == 7
    assert not native.is_built(FORTY_TWO)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "belongs to another user" in record.getMessage()
    assert "GPPRUNE_CACHE" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1


def test_a_folder_from_which_nothing_may_run_is_said_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = ctypes.CDLL

    def refuse(path: str) -> ctypes.CDLL:
        if path.startswith(str(cache)):
            raise OSError(f"{path}: failed to map segment from shared object")
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert answer() == 42
    native.forget()  # as another process, which finds the library
    caplog.clear()
    assert (answer(), answer(SEVEN)) == (42, 7)
    (record,) = caplog.records
    assert "failed to map segment" in record.getMessage()


def test_a_folder_that_cannot_be_written_is_said_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.touch()
    assert (answer(), answer(SEVEN)) == (42, 7)
    (record,) = caplog.records
    assert "GPPRUNE_CACHE" in record.getMessage()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder: the compiler notes its runs in `runs`, fails while `broken`, waits while `slow`."""
    folder = tmp_path / "compiler"
    folder.mkdir()
    script = folder / "g++"
    script.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then printf "g\\377+ 1"; exit; fi\n'
        f"echo run >>{folder}/runs\n"
        f"if [ -e {folder}/broken ]; then echo 'No space left on device' >&2; exit 1; fi\n"
        f"while [ -e {folder}/slow ]; do sleep 0.05; done\n"
        f'exec {shutil.which("g++") or shutil.which("clang++")} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_a_compiler_whose_version_is_no_utf8_is_used(compiler: Path) -> None:
    assert answer() == 42
    assert (compiler / "runs").exists()


def test_a_build_that_failed_is_tried_again(
    compiler: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (compiler / "broken").touch()
    assert answer() is None
    (compiler / "broken").unlink()
    assert answer() == 42
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_a_source_that_cannot_be_compiled_is_not_tried_forever(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert [answer(WRONG) for _ in range(9)] == [None] * 9
    assert (compiler / "runs").read_text().count("run") == 2
    assert answer() == 42
    assert len(caplog.records) == 1
    # but what was full may have been emptied since
    monkeypatch.setattr(native, "PATIENCE", 0.0)
    assert answer(WRONG) is None
    assert (compiler / "runs").read_text().count("run") == 4


FORKED = f"""
import os, signal, sys, threading, time
from pathlib import Path
from gpprune.compile.cpp import native
folder = Path(sys.argv[1])
(folder / "slow").touch()
building = threading.Thread(target=native.functions, args=({SEVEN!r},), kwargs={{"answer": "p"}})
building.start()
while not (folder / "runs").exists():
    time.sleep(0.01)
child = os.fork()
if not child:
    signal.alarm(60)
    (folder / "slow").unlink()
    os._exit(0 if native.functions({FORTY_TWO!r}, answer="p") else 1)
_, status = os.waitpid(child, 0)
(folder / "slow").unlink(missing_ok=True)
building.join()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_fork_during_a_build_does_not_hang(compiler: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, str(compiler)], capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_command_says_it_in_one_line(cache: Path) -> None:
    """Of a process that has set up no logging, on standard error."""
    cache.touch()
    program = f"from gpprune.compile.cpp import native\nnative.functions({FORTY_TWO!r}, answer='p')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    assert "GPPRUNE_CACHE" in done.stderr
