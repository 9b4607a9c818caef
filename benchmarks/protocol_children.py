"""Child processes with a time limit, none of which outlives the protocol."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

STDERR = 2
TERMINATED = 128 + signal.SIGTERM


def exit_when_terminated() -> None:
    """Make SIGTERM end this process the ordinary way, so that whatever is being waited for is stopped first."""

    def leave(number: int, _frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # one is enough: what follows must not be cut off
        sys.exit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)


def run_python(
    arguments: Sequence[str],
    *,
    limit: float,
    grace: float = 5.0,
    beat: Callable[[], object] = lambda: None,
    every: float = 15.0,
) -> int | None:
    """Run this Python with the given arguments; returns its exit code, None where it was stopped at the limit.

    limit: seconds.  grace: seconds from SIGTERM to the end by force, of its own children too.  beat: called every so
    many seconds.  Its standard output goes to standard error.
    """
    end = time.monotonic() + limit
    child = subprocess.Popen([sys.executable, *arguments], stdout=STDERR, start_new_session=True)
    try:
        while (left := end - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(min(every, left))
            beat()
        return None
    finally:
        _stop(child, grace)


def _stop(child: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the child alone, which may save what it has; then the end for it and all that it started."""
    if child.poll() is not None:
        return
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
