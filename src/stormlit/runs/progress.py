"""The training's progress bar."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, Self

from tqdm import tqdm

from stormlit.analysis.evaluate import OnStep

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
        self._timed_phase = ""
        shape = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
        self._bar = _bar(total, shape, initial=initial, disable=not enabled)

    def advance(self, steps: int) -> None:
        """Count ``steps`` more environment steps."""
        self._steps += steps
        self._latest_steps = steps
        self._bar.n += steps

    def show(self, latest_return: float | None, phase: str) -> None:
        """Set the latest episode return (None before the first episode has ended) and the phase, such as "train"."""
        # An evaluation is a pause of the phase around it.
        if phase in ("random", "train") and phase != self._timed_phase:
            self._timed_phase = phase
            self._steps_before_phase, self._phase_began = self._steps - self._latest_steps, self._shown
        self._shown = time.monotonic()
        latest = "" if latest_return is None else f", return {latest_return:g}"
        self._bar.set_postfix_str(f"{self._speed()}{phase}{latest}", refresh=False)
        self._bar.update(0)  # draws, when it is time: in an evaluation the steps stand still

    def _speed(self) -> str:
        steps = self._steps - self._steps_before_phase
        if steps == 0:
            return ""
        seconds_per_step = (time.monotonic() - self._phase_began) / steps
        left = tqdm.format_interval((self._bar.total - self._bar.n) * seconds_per_step)
        return f"{1 / max(seconds_per_step, 1e-9):.3g} steps/s, " + f"{left} left, " * (self._timed_phase == "train")

    def show_evaluation(self, policy: str) -> OnStep:
        """The ``on_step`` of an evaluation, which shows how far that is in place of the phase."""
        return lambda episodes, steps: self.show(None, f"evaluate {policy}: {episodes} episodes, {steps:,} steps")

    def steps_per_second(self) -> float:
        """Environment steps per second since the last call (or since this bar was made)."""
        now = time.monotonic()
        rate = (self._steps - self._steps_then) / max(now - self._then, 1e-9)
        self._steps_then, self._then = self._steps, now
        return rate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended: object) -> None:
        """Draw the bar a last time and leave it on the screen."""
        self._bar.close()


def _bar(total: int, shape: str, **options: Any) -> tqdm[Any]:
    terminal = sys.stderr.isatty()
    interval = TERMINAL_INTERVAL_SECONDS if terminal else LOG_FILE_INTERVAL_SECONDS
    # miniters=0 draws while the number of steps or episodes stands still.
    return tqdm(
        total=total,
        file=sys.stderr,
        mininterval=interval,
        maxinterval=LOG_FILE_INTERVAL_SECONDS,
        miniters=0,
        dynamic_ncols=terminal,
        bar_format=shape,
        **options,
    )


@contextlib.contextmanager
def evaluation_bar(episodes: int) -> Iterator[OnStep]:
    """The ``on_step`` of an evaluation that shows on stderr how far it is, and nothing when it is done."""
    shape = "{n_fmt}/{total_fmt} episodes [{elapsed}{postfix}]"
    with _bar(episodes, shape, delay=TERMINAL_INTERVAL_SECONDS, leave=False) as bar:

        def on_step(counted: int, steps: int) -> None:
            bar.set_postfix_str(f"{steps:,} steps", refresh=False)
            bar.update(counted - bar.n)

        yield on_step
