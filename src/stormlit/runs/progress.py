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

    Speed and time left are those of the phase: random steps tell nothing about how long training takes.

    total: environment steps of the whole training.  initial: steps done by earlier processes of the same run.
    enabled: whether to draw anything; only one of several processes should.
    Where stderr is not a terminal a line is drawn every 10 s at most.
    """

    def __init__(self, total: int, initial: int = 0, *, enabled: bool = True) -> None:
        self._steps = self._steps_then = self._steps_before_phase = self._latest_steps = 0
        self._then = self._phase_began = self._shown = time.monotonic()
        self._phase = self._timed_phase = ""
        self._on_terminal = sys.stderr.isatty()
        interval = TERMINAL_INTERVAL_SECONDS if self._on_terminal else LOG_FILE_INTERVAL_SECONDS
        self._bar = tqdm(
            total=total,
            initial=initial,
            file=sys.stderr,
            mininterval=interval,
            maxinterval=LOG_FILE_INTERVAL_SECONDS,
            miniters=1,
            dynamic_ncols=self._on_terminal,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            disable=not enabled,
        )

    def advance(self, steps: int) -> None:
        """Count ``steps`` more environment steps."""
        self._steps += steps
        self._latest_steps = steps
        self._bar.update(steps)

    def show(self, latest_return: float | None, phase: str) -> None:
        """Set the latest episode return (None before the first episode has ended) and the phase, such as "train"."""
        changed = phase != self._phase
        # An evaluation is a pause of the phase around it.
        if phase in ("random", "train") and phase != self._timed_phase:
            self._timed_phase = phase
            self._steps_before_phase, self._phase_began = self._steps - self._latest_steps, self._shown
        self._shown = time.monotonic()
        self._phase = phase
        latest = "" if latest_return is None else f", return {latest_return:g}"
        self._bar.set_postfix_str(f"{self._speed()}{phase}{latest}", refresh=self._on_terminal and changed)

    def _speed(self) -> str:
        steps = self._steps - self._steps_before_phase
        if steps == 0:
            return ""
        seconds_per_step = (time.monotonic() - self._phase_began) / steps
        left = tqdm.format_interval((self._bar.total - self._bar.n) * seconds_per_step)
        return f"{1 / max(seconds_per_step, 1e-9):.3g} steps/s, " + f"{left} left, " * (self._timed_phase == "train")

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
