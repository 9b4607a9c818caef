"""Everything that learns in one process, and its state as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from stormlit.data import Batch, Trajectory
from stormlit.envs import VectorEnv
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.experience import Experience
from stormlit.storm.learner import Learner
from stormlit.storm.metrics import MetricBuffer
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.schedule import Plan, Progress
from stormlit.storm.world_model import WorldModel


@dataclass(slots=True)
class Training:
    """What ``loop.fit`` drives.

    world_model, agent: the bare modules, used without gradients; the learners hold them wrapped for training.
    collector: environments, player and replay buffer.  experience: windows and contexts of it, to learn from.
    imagine: rollouts of the policy from contexts.
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

    @property
    def steps_at_once(self) -> int:
        """Environment steps that one action in every environment makes, over all processes."""
        return self.envs.num_envs * self.fabric.world_size

    @property
    def in_warmup(self) -> bool:
        """Whether the next step still belongs to the random start."""
        return self.progress.env_steps < self.plan.warmup_steps

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
            "precision": self.fabric._precision.state_dict(),
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
        self.fabric._precision.load_state_dict(state["precision"])
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
