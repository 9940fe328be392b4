"""Run a command of gpprune again and again, each time to its death at another moment.

    python dying.py '{"shots": "out.shots", "moments": [...]}' prune --out out ...

What takes seconds to import is imported once, and every run is a fork. A moment is of what Python
says of itself to audit hooks: ``{"event": "os.rename", "of": "a pattern", "count": 1}``, and "how":
"kill" (SIGKILL there and then) or "tear": from there on no file grows beyond `LARGEST` bytes, and
the write that would make one dies in its middle, of SIGXFSZ. Or a moment is one of the clock:
``{"shots": 1, "share": 0.3}``, SIGKILL when so many more shots are kept and then a share of the
seconds of the last has passed.

Prints, for each moment, a JSON object on a line: the signal that the run died of, how many shots
are kept, and the sizes of the files that lie where they are kept.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

LARGEST = 100_000


def kept(record: Path) -> list[Any]:
    return list(json.loads(record.read_text())["shots"]) if record.exists() else []


def listen(moment: dict[str, Any]) -> None:
    """Die, or see to it, when an event has come so many times."""
    left = moment["count"]

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != moment["event"] or not re.search(moment["of"], " ".join(map(str, arguments))):
            return
        left -= 1
        if left:
            return
        if moment["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))

    sys.addaudithook(hear)


def killed_in_time(run: int, moment: dict[str, Any], record: Path) -> int:
    """The status with which a run ends that is killed, unless it ends too early."""
    wanted = len(kept(record)) + moment["shots"]
    while len(kept(record)) < wanted:
        ended, status = os.waitpid(run, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    time.sleep(moment["share"] * kept(record)[-1]["seconds"])
    os.kill(run, signal.SIGKILL)
    return os.waitpid(run, 0)[1]


def main() -> None:
    plan, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    record = Path(plan["shots"]) / "shots.json"
    import transformers

    import gpprune.cli
    from gpprune.__main__ import main as gpprune_main

    assert transformers.LlamaForCausalLM and gpprune.cli.run  # both import late
    for moment in plan["moments"]:
        run = os.fork()
        if run == 0:
            if "event" in moment:
                listen(moment)
            sys.argv = ["gpprune", *arguments]
            gpprune_main()
        in_time = "share" in moment
        status = killed_in_time(run, moment, record) if in_time else os.waitpid(run, 0)[1]
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        files = {path.name: path.stat().st_size for path in record.parent.glob("*")}
        print(json.dumps({"died": died, "shots": len(kept(record)), "files": files}), flush=True)


if __name__ == "__main__":
    main()
