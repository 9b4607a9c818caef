"""What a training is: when things happen, what has been measured, and everything that learns in one process."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stormlit.data import Batch, Trajectory
from stormlit.envs import VectorEnv
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.fabric_internals import load_precision_state, precision_state
from stormlit.storm.learner import Learner
from stormlit.storm.replay import Experience, ReplayBuffer
from stormlit.storm.world_model import WorldModel

if TYPE_CHECKING:
    from lightning.fabric import Fabric


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


class MetricBuffer:
    """Means of scalar metrics since the last ``drain``.

    Tensors are summed on their own device, as one vector per set of keys: an ``add`` costs two small kernels however
    many metrics it brings, and nothing is copied to the host before ``drain``.

    >>> buffer = MetricBuffer()
    >>> buffer.add("agent", {"entropy": torch.tensor(1.0), "updates": 2})
    >>> buffer.add("agent", {"entropy": torch.tensor(2.0), "updates": 2})
    >>> buffer.drain()
    {'agent/updates': 2.0, 'agent/entropy': 1.5}
    """

    def __init__(self) -> None:
        self._on_host: dict[str, tuple[float, int]] = {}  # key -> sum, count
        # Keys, of which the last is for the share of skipped calls -> a vector of the metrics' sums, with their common
        # count as its last element, and the number of calls.
        self._on_device: dict[tuple[str, ...], tuple[Tensor, int]] = {}

    def add(self, prefix: str, metrics: Mapping[str, Tensor | float], valid: Tensor | None = None) -> None:
        """Add one value per metric under the key ``prefix/name``; tensors have exactly one element, of any dtype.

        valid: bool scalar on the tensors' device; where it is False, the tensors do not count. The share of such calls
        becomes the metric ``prefix/skipped``.
        """
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in metrics.items():
            key = f"{prefix}/{name}" if prefix else name
            if isinstance(value, Tensor):
                by_device.setdefault(value.device, {})[key] = value.detach().float().reshape(())
            else:
                total, count = self._on_host.get(key, (0.0, 0))
                self._on_host[key] = (total + float(value), count + 1)
        for device, values in by_device.items():
            group = (*values, f"{prefix}/skipped" if valid is not None else "")
            added = torch.stack([*values.values(), torch.ones((), device=device)])
            if valid is not None:
                added = added.where(valid, 0.0)
            # Not in place: the sums may have been made in inference mode, and state_dict hands them out. From a
            # checkpoint they come back on the CPU, and go on where an unbroken run would have them.
            sums, calls = self._on_device.get(group, (None, 0))
            self._on_device[group] = (added if sums is None else sums.to(device) + added, calls + 1)

    def drain(self) -> dict[str, float]:
        """Return the mean of every metric added since the last drain, and forget them; one transfer per device."""
        totals = dict(self._on_host)
        for device in {sums.device for sums, _ in self._on_device.values()}:
            groups = [(keys, *entry) for keys, entry in self._on_device.items() if entry[0].device == device]
            values = iter(torch.cat([sums for _, sums, _ in groups]).tolist())
            for (*keys, skipped), _, calls in groups:
                *sums, count = itertools.islice(values, len(keys) + 1)
                for key, value in zip(keys, sums, strict=True):
                    total, seen = totals.get(key, (0.0, 0))
                    totals[key] = (total + value, seen + int(count))
                if skipped:
                    totals[skipped] = (calls - count, calls)
        self._on_host, self._on_device = {}, {}
        return {key: total / count for key, (total, count) in totals.items() if count}

    def state_dict(self) -> dict[str, Any]:
        """What has been added since the last drain."""
        return {
            "on_host": dict(self._on_host),
            "on_device": [(list(keys), sums, calls) for keys, (sums, calls) in self._on_device.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by that of ``state_dict``; the sums may come back on another device."""
        self._on_host = {key: (total, count) for key, (total, count) in state["on_host"].items()}
        self._on_device = {tuple(keys): (sums, calls) for keys, sums, calls in state["on_device"]}


@dataclass(slots=True)
class Training:
    """What ``loop.fit`` drives.

    world_model, agent: the bare modules, used without gradients; the learners hold them wrapped for training.
    collector: environments, player and replay buffer.  experience: windows and contexts of it, to learn from.
    imagine: rollouts of the policy from contexts.
    steps_at_once: environment steps that one action in every environment makes, over all processes.
    returns: environment steps at its end, and return, of each episode of this process's environments.
    """

    fabric: Fabric
    world_model: WorldModel
    agent: ActorCritic
    world_model_learner: Learner
    agent_learner: Learner
    collector: Collector
    experience: Experience
    imagine: Callable[[Batch], Trajectory]
    plan: Plan
    progress: Progress = field(default_factory=Progress)
    metrics: MetricBuffer = field(default_factory=MetricBuffer)
    returns: list[tuple[int, float]] = field(default_factory=list)
    steps_at_once: int = field(init=False)

    def __post_init__(self) -> None:
        self.steps_at_once = self.envs.num_envs * self.fabric.world_size

    @property
    def envs(self) -> VectorEnv:
        return self.collector.envs

    @property
    def replay(self) -> ReplayBuffer:
        return self.collector.replay

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs, evaluates and draws."""
        return self.fabric.is_global_zero

    def state_dict(self) -> dict[str, Any]:
        """All but the weights and the replay rows, in tensors and built-in types."""
        demonstrations = self.experience.demonstrations
        return {
            "progress": self.progress.state_dict(),
            "warmup_steps": self.plan.warmup_steps,
            "latest_return": self.collector.latest_return,
            "returns": torch.tensor(self.returns, dtype=torch.float64).reshape(-1, 2),
            "world_model_learner": self.world_model_learner.state_dict(),
            "agent_learner": self.agent_learner.state_dict(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "demonstrations": None if demonstrations is None else demonstrations.state_dict(),
            "metrics": self.metrics.state_dict(),
            "schedules": {"world_model": self.plan.world_model.state_dict(), "agent": self.plan.agent.state_dict()},
            "precision": precision_state(self.fabric),
            "random": random_state(self.fabric.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress.load_state_dict(state["progress"])
        self.plan.warmup_steps = state["warmup_steps"]
        for name in ("world_model_learner", "agent_learner", "collector", "replay", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        self.collector.latest_return = state["latest_return"]
        # Older checkpoints have none.
        self.returns = [(int(steps), value) for steps, value in state.get("returns", torch.empty(0, 2)).tolist()]
        # A run may begin or cease to have demonstrations on the way.
        if self.experience.demonstrations is not None and state.get("demonstrations") is not None:
            self.experience.demonstrations.load_state_dict(state["demonstrations"])
        self.plan.world_model.load_state_dict(state["schedules"]["world_model"])
        self.plan.agent.load_state_dict(state["schedules"]["agent"])
        load_precision_state(self.fabric, state["precision"])
        set_random_state(state["random"], self.fabric.device)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global random states of this process, its own GPU's among them, in tensors and built-in types."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what ``random_state`` returned.

    Raises ``ValueError`` for a position outside NumPy's state, which NumPy would follow.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "numpy" in state:
        inner = state["numpy"]["state"]
        if not 0 <= inner["pos"] <= len(inner["key"]) == 624:
            raise ValueError("NumPy's random state makes no sense")
        np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"]:
        # Older checkpoints hold the states of all the GPUs that were visible.
        torch.cuda.set_rng_state(state["cuda"][min(device.index or 0, len(state["cuda"]) - 1)], device)
