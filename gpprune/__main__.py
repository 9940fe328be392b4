"""The console script: ready for Ctrl-C and SIGTERM before the slow imports begin."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import namedtuple
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TERMINATED = 143


_TOGETHER = 1.0  # seconds within which a second Ctrl-C is the first one's echo
_interrupted_at: float | None = None


class Terminated(BaseException):
    """SIGTERM, raised where the program is, so that open files are closed on the way out."""


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Interrupt once, so that what is open is closed; again a while later, end at once."""
    global _interrupted_at
    now = time.monotonic()
    if _interrupted_at is None:
        _interrupted_at = now
        raise KeyboardInterrupt
    if now - _interrupted_at > _TOGETHER:
        os.write(sys.stderr.fileno(), b"gpprune: interrupted again, ended at once\n")
        os._exit(INTERRUPTED)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # nohup and background jobs
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from gpprune.cli import run

        code = run()
    except KeyboardInterrupt:
        code = _told("interrupted", INTERRUPTED)
    except Terminated:
        code = _told("terminated", TERMINATED)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the way out is short, and a signal spoils its end
    # Python takes a Ctrl-C for unhandled if it came while code in a string ran, as dataclasses do,
    # and dies of it after `python -m`, whatever the code. The next code in a string unmarks it.
    namedtuple("Unmarked", ())
    sys.exit(code)


def _told(what: str, code: int) -> int:
    print(f"gpprune: {what}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
