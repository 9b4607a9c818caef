"""What a worker of Ray or a job of Slurm is given to do. It imports nothing heavy before threads are set."""

from __future__ import annotations

import contextlib
import datetime
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO


def train_here(words: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> int:
    """``python -m stormlit train`` in this process, its output appended to a file; returns its exit code.

    folder: where relative paths of the words, and modules of the user's, are looked for.
    environment: variables that libraries read when they are loaded.
    """
    os.environ.update(environment)
    os.chdir(folder)
    # What Slurm's jobs are warned with before their time is over; SIGUSR1 lets a training save and end.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        begin_part(file)
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            stream.flush()
            os.dup2(file.fileno(), number)
        with (
            contextlib.redirect_stdout(os.fdopen(os.dup(1), "w")),
            contextlib.redirect_stderr(os.fdopen(os.dup(2), "w")),
        ):
            return _code_of(words)


def begin_part(log: BinaryIO) -> None:
    """Write the line above each part of a cell's log, which is open at its end."""
    if log.tell():  # a bar that was killed ends within its line
        log.write(b"\n")
    log.write(f"--- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
    log.flush()


def _code_of(words: Sequence[str]) -> int:
    sys.argv = ["stormlit", "train", *words]
    try:
        runpy.run_module("stormlit", run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
