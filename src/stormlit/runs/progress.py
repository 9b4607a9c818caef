"""The training's progress bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LOG_FILE_INTERVAL_SECONDS = 10.0
TERMINAL_INTERVAL_SECONDS = 0.2


class ProgressBar:
    """Environment steps done, steps per second, time left, the phase and the latest episode return, on stderr.

    total: environment steps of the whole training.  initial: steps done by earlier processes of the same run.
    enabled: whether to draw anything; only one of several processes should.
    Where stderr is not a terminal a line is drawn every 10 s at most.
    """

    def __init__(self, total: int, initial: int = 0, *, enabled: bool = True) -> None:
        self._steps = self._steps_then = 0
        self._then = time.monotonic()
        self._phase = ""
        self._on_terminal = sys.stderr.isatty()
        interval = TERMINAL_INTERVAL_SECONDS if self._on_terminal else LOG_FILE_INTERVAL_SECONDS
        self._bar = tqdm(
            total=total,
            initial=initial,
            file=sys.stderr,
            mininterval=interval,
            maxinterval=LOG_FILE_INTERVAL_SECONDS,
            miniters=1,
            smoothing=0.05,  # a nearly plain average: pauses for evaluation should not make the time left jump
            dynamic_ncols=self._on_terminal,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
            "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]",
            unit="step",
            disable=not enabled,
        )

    def advance(self, steps: int) -> None:
        """Count ``steps`` more environment steps."""
        self._steps += steps
        self._bar.update(steps)

    def show(self, latest_return: float | None, phase: str) -> None:
        """Set the latest episode return (None before the first episode has ended) and the phase, such as "train"."""
        latest = "" if latest_return is None else f", return {latest_return:g}"
        self._bar.set_postfix_str(f"{phase}{latest}", refresh=self._on_terminal and phase != self._phase)
        self._phase = phase

    def close(self) -> None:
        """Draw the bar a last time and leave it on the screen."""
        self._bar.close()

    def steps_per_second(self) -> float:
        """Environment steps per second since the last call (or since this bar was made)."""
        now = time.monotonic()
        rate = (self._steps - self._steps_then) / max(now - self._then, 1e-9)
        self._steps_then, self._then = self._steps, now
        return rate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
