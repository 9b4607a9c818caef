"""What a worker of Ray or a job of Slurm is given to do. It imports nothing heavy before threads are set."""

from __future__ import annotations

import contextlib
import datetime
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO


def train_here(words: Sequence[str], log: Path, folder: Path, threads: int) -> int:
    """``python -m stormlit train`` in this process, its output appended to a file; returns its exit code.

    folder: where relative paths of the words, and modules of the user's, are looked for.
    """
    os.environ.update(thread_variables(threads))
    os.chdir(folder)
    # What Slurm's jobs are warned with before their time is over; SIGUSR1 lets a training save and end.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    sys.argv = ["stormlit", "train", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        begin_part(file)
        for number in (1, 2):  # of this process and those it starts
            os.dup2(file.fileno(), number)
    output, errors = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    with output, errors, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("stormlit", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def begin_part(log: BinaryIO) -> None:
    """Write the line above each part of a cell's log, which is open at its end."""
    if log.tell():  # a bar that was killed ends within its line
        log.write(b"\n")
    log.write(f"--- {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
    log.flush()


def thread_variables(threads: int) -> dict[str, str]:
    """What libraries read when they are loaded, each its own."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
