"""When things happen, counted in environment steps; all of it stateful, so that a resumed run keeps the beat."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any


class Every:
    """True once whenever another ``interval`` environment steps have passed; never with an interval of 0.

    >>> every = Every(10)
    >>> [step for step in range(0, 31, 4) if every.due(step)]
    [12, 20]
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.last_due = 0  # environment steps, not intervals, so that a resumed run may have another interval

    def due(self, env_steps: int) -> bool:
        if self.interval <= 0 or env_steps // self.interval <= self.last_due // self.interval:
            return False
        self.last_due = env_steps
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"last_due": self.last_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_due = state["last_due"]


class EveryMinutes:
    """Due when so many minutes of wall-clock time have passed since the last restart; never with 0.

    It has no state to save: what it decides may not change what is computed.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.restart()

    def restart(self) -> None:
        self.since = time.monotonic()

    def due(self) -> bool:
        return self.minutes > 0 and time.monotonic() - self.since >= 60 * self.minutes


class Ratio:
    """How many updates are owed for the environment steps taken; fractions are carried over.

    >>> ratio = Ratio(0.5)
    >>> [ratio.owed(1) for _ in range(4)]
    [0, 1, 0, 1]
    """

    def __init__(self, updates_per_env_step: float) -> None:
        self.updates_per_env_step = updates_per_env_step
        self.carried = 0.0

    def owed(self, env_steps: int) -> int:
        """Updates to make after ``env_steps`` more environment steps."""
        self.carried += env_steps * self.updates_per_env_step
        updates = int(self.carried + 1e-9)  # ten times 0.1 must make one
        self.carried -= updates
        return updates

    def state_dict(self) -> dict[str, Any]:
        return {"carried": self.carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.carried = state["carried"]


@dataclass(slots=True)
class Plan:
    """What a training does, in environment steps over all environments and processes.

    env_steps: budget.  warmup_steps: random start.  world_model, agent: the updates that steps owe.
    overlap: whether the updates are made while the environments take the next step, and not after it.
    """

    env_steps: int
    warmup_steps: int
    world_model: Ratio
    agent: Ratio
    overlap: bool = False


@dataclass(slots=True)
class Progress:
    """How far a run has come.  env_steps: after frame skip, over all environments and processes."""

    env_steps: int = 0
    world_model_updates: int = 0
    agent_updates: int = 0
    episodes: int = 0
    failed_checkpoints: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
