"""The console script: ready for Ctrl-C and SIGTERM before the slow imports begin."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TERMINATED = 143


class Terminated(BaseException):
    """SIGTERM, raised where the program is, so that open files are closed on the way out."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from gpprune.cli import run

        code = run()
    except KeyboardInterrupt:
        code = _told("interrupted", INTERRUPTED)
    except Terminated:
        code = _told("terminated", TERMINATED)
    sys.exit(code)


def _told(what: str, code: int) -> int:
    print(f"gpprune: {what}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
