"""Signals that ask a training to stop: it finishes the step, saves, and ends with 128 + the signal's number."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Stopped(BaseException):
    """The end of a training that a signal asked for; no ``Exception``, so that nobody takes it for a failure.

    number: the signal's.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class StopSignals:
    """A context that notes ``STOPPING`` signals in ``received`` (0: none yet) instead of ending the process.

    A SIGINT after that raises ``KeyboardInterrupt`` at once; other signals are ignored from then on. Outside the main
    thread, where Python allows no handlers, nothing changes. The handlers there were before come back at the end.
    Under `nohup`, which ignores SIGHUP, that stays ignored.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            under_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            noted = [number for number in STOPPING if not (under_nohup and number == signal.SIGHUP)]
            self._before = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(self, *ended: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which the first signal raises ``Stopped``, since there is nothing left to save."""
        self._at_once = True
        try:
            if self.received:
                raise Stopped(self.received, "after the last checkpoint")
            yield
            if self.received:  # Python drops what is raised while it collects an object
                raise Stopped(self.received, "after the last checkpoint")
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = number
        if self._at_once:
            raise Stopped(number, "after the last checkpoint")
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):
            os.write(2, f"\n{signal.Signals(number).name}: saving after this step\n".encode())
