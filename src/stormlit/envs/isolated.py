"""One environment in a process of its own, which may crash, hang or be killed without harm to this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from stormlit.envs.local import Command, Crash, EnvFacts, StepResult
from stormlit.envs.settings import EnvSettings

START_SECONDS = 300.0  # to import and make an environment: generous, for a cold disk under load
CLOSE_SECONDS = 5.0  # to close it in good order

# Signals for the run as a whole, as a job scheduler sends them, are the parent's to answer: it still wants to finish
# its step. They are ignored before the imports, which take most of a second.
_PROGRAM = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
from stormlit.envs.worker import main
main({descriptor}, die_with_parent={die_with_parent})
"""


class IsolatedEnv:
    """An environment in a process of its own; used like ``LocalEnv``.

    A fresh interpreter runs ``worker.main``: unlike ``multiprocessing`` this neither runs the user's main module again
    nor waits, when this process ends, for an environment that hangs.
    """

    def __init__(self, settings: EnvSettings) -> None:
        self._limit = settings.step_timeout_seconds or None
        ours, theirs = socket.socketpair()
        # The kernel watches the starting thread, not the process: a thread that may end first does not qualify.
        die_with_parent = threading.current_thread() is threading.main_thread()
        program = _PROGRAM.format(descriptor=theirs.fileno(), die_with_parent=die_with_parent)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # out of reach of the terminal's Ctrl-C
                # What can be imported here can be imported there: env.id may name a module. What computes with threads
                # there shares the cores with the other environments.
                env={
                    "OMP_NUM_THREADS": "1",
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                },
            )
        self._connection = Connection(ours.detach())
        self._called_at = time.monotonic()
        self._send(settings)

    def facts(self) -> EnvFacts:
        facts: EnvFacts = self._receive(START_SECONDS, "to start")
        return facts

    def call_async(self, command: Command, value: int | np.ndarray) -> None:
        self._called_at = time.monotonic()
        self._send((command, value))

    def call_wait(self) -> StepResult:
        result: StepResult = self._receive(self._limit, "of env.step_timeout_seconds")
        return result

    def close(self) -> None:
        self._send(None)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        self.discard()

    def discard(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, message: Any) -> None:
        with suppress(OSError):  # a process that is gone shows when its answer is read
            self._connection.send(message)

    def _receive(self, limit: float | None, what: str) -> Any:
        """The next message.  limit: seconds since the call, or None.  Raises ``Crash`` or what was raised there."""
        left = None if limit is None else max(0.0, self._called_at + limit - time.monotonic())
        try:
            if not self._connection.poll(left):
                raise Crash(f"it did not answer within the {limit:g} seconds {what}")
            message = self._connection.recv()
        except (EOFError, OSError):
            raise Crash(self._how_it_ended()) from None
        if isinstance(message, Exception):
            raise message
        return message

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process closed the connection"
        if code >= 0:
            return f"its process exited ({code})"
        names = {number.value: number.name for number in signal.Signals}  # most real-time signals have none
        return f"its process was killed by {names.get(-code, f'signal {-code}')}"
