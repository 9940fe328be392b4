from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpprune.files import whole_folder


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
