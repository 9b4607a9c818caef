"""Catch with faults, and a slow one, for processes of isolated environments to import: ``faulty_envs:Raise-v0``.

An episode fails if its seed is a multiple of three, at its fourth step, whoever plays it and wherever.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from stormlit.envs import episode_seed
from stormlit.envs.catch import GRID, Catch

FAULTY_STEP = 4  # of an episode, counted from 1
STEPS = "FAULTY_ENVS_STEPS"  # names the file
ABSENT = "FAULTY_ENVS_ABSENT"  # names a file: while it exists, no environment of this module can be made


def is_faulty(seed: int) -> bool:
    return seed % 3 == 0


class Faulty(Catch):
    """fault: "raise", "hang", "exit" or "kill" in a step; "reset" raises in the reset; "always" in all but one."""

    def __init__(self, fault: str) -> None:
        if Path(os.environ.get(ABSENT, "/nowhere")).exists():
            raise RuntimeError("the emulator's files are gone")
        super().__init__(cell=2)
        self.fault, self.steps, self.seed = fault, 0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        assert seed is not None
        self.steps, self.seed = 0, seed
        if self.fault == "reset" and is_faulty(seed):
            raise ZeroDivisionError("no beginning")
        return super().reset(seed=seed)

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if (self.fault == "always" and self.steps > 1) or (self.steps == FAULTY_STEP and is_faulty(self.seed)):
            self._fail()
        return super().step(action)

    def _fail(self) -> None:
        if self.fault in ("raise", "always"):
            raise ZeroDivisionError("broken\nand more about it")
        if self.fault == "hang":
            time.sleep(1e6)
        if self.fault == "exit":
            os._exit(7)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


class Leaky(Catch):
    """The paddle begins a column further to the right in each episode: only a first one follows from its seed."""

    def __init__(self) -> None:
        super().__init__(cell=2)
        self.begun = 0

    def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        _, info = super().reset(**how)
        self._paddle_column = (self._paddle_column + self.begun) % GRID
        self.begun += 1
        return self._image(), info


class Spoilt(Catch):
    """Raises at one step of each episode, once ``spoilt`` is set."""

    spoilt = False

    def __init__(self) -> None:
        super().__init__(cell=2)
        self.taken = 0

    def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.taken = 0
        return super().reset(**how)

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        if self.spoilt and self.taken == FAULTY_STEP:
            raise RuntimeError("spoilt")
        return super().step(action)


class LeakyElsewhere(Leaky):
    """Sound in the first process of a run."""

    def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self.begun = 0
        return super().reset(**how)


class Slow(Catch):
    """Half a second a step."""

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(0.5)
        return super().step(action)


class Counted(Catch):
    """Appends a byte to a file for each step."""

    def step(self, action: int | np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        with open(os.environ[STEPS], "ab") as file:
            file.write(b".")
        return super().step(action)


gymnasium.register("Counted-v0", entry_point=Counted, max_episode_steps=8)
gymnasium.register("Leaky-v0", entry_point=Leaky, max_episode_steps=8)
gymnasium.register("LeakyElsewhere-v0", entry_point=LeakyElsewhere, max_episode_steps=8)
gymnasium.register("Spoilt-v0", entry_point=Spoilt, max_episode_steps=8)
gymnasium.register("Slow-v0", entry_point=Slow, max_episode_steps=8)
for word in ("raise", "hang", "exit", "kill", "reset", "always"):
    gymnasium.register(f"{word.title()}-v0", entry_point=Faulty, max_episode_steps=8, kwargs={"fault": word})


EPISODE = 7  # steps of Catch


def faulty_episodes(row: int, count: int) -> list[bool]:
    """Which of the first episodes of a row fail."""
    return [is_faulty(episode_seed(0, row, index)) for index in range(count)]
