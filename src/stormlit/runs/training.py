"""Everything one process of a training run is made of, and its state as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from stormlit.config.compose import to_yaml
from stormlit.config.schema import Config
from stormlit.envs import VectorEnv
from stormlit.files import write_atomically
from stormlit.nn.fast.compilation import full_windows, should_compile
from stormlit.runs.assembly import build_demonstrations, build_modules, build_replay, imagination, player_factory, share
from stormlit.runs.directory import RunDirectory
from stormlit.runs.progress import ProgressBar
from stormlit.runs.replay_segments import ReplaySegments
from stormlit.runs.signals import StopSignals
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.demonstrations import DemonstrationBuffer
from stormlit.storm.evaluate import Evaluation
from stormlit.storm.learner import Learner
from stormlit.storm.metrics import MetricBuffer
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.schedule import Every, EveryMinutes, Progress, Ratio
from stormlit.storm.world_model import WorldModel
from stormlit.tracking import Tracker
from stormlit.types import Batch, Trajectory


@dataclass(slots=True)
class Schedules:
    """When to do what, in environment steps."""

    world_model: Ratio
    agent: Ratio
    log: Every
    media: Every
    evaluation: Every
    checkpoint: Every


@dataclass(slots=True)
class Training:
    """One process of a run: built by ``build_training``, driven by ``loop.fit``.

    world_model, agent: the bare modules, used without gradients; the learners hold them wrapped for training.
    warmup_steps: the random start, shortened for budgets too small for it.
    batch_size, imagined_rows: windows and contexts of real experience in an update, this process's share; with
    demonstrations ``demonstrated_windows`` and ``demonstrated_contexts`` of them are added.
    segments: the replay rows on disk.  clock: for checkpoints by wall-clock time.  run_id: the tracker's.
    latest_return: of the last finished episode, None before the first.
    """

    config: Config
    fabric: Fabric
    directory: RunDirectory
    tracker: Tracker
    envs: VectorEnv
    replay: ReplayBuffer
    world_model: WorldModel
    agent: ActorCritic
    world_model_learner: Learner
    agent_learner: Learner
    collector: Collector
    imagine: Callable[[Batch], Trajectory]
    schedules: Schedules
    warmup_steps: int
    batch_size: int
    imagined_rows: int
    demonstrations: DemonstrationBuffer | None
    demonstrated_windows: int
    demonstrated_contexts: int
    segments: ReplaySegments
    clock: EveryMinutes
    bar: ProgressBar = field(init=False)  # shown while training
    signals: StopSignals = field(default_factory=StopSignals)  # obeyed while training
    run_id: str = ""
    saved_at: int | None = None  # environment steps of the newest checkpoint
    progress: Progress = field(default_factory=Progress)
    metrics: MetricBuffer = field(default_factory=MetricBuffer)
    latest_return: float | None = None
    latest_evaluation: Evaluation | None = None  # of this process

    @property
    def is_main(self) -> bool:
        """Whether this is the process that logs, evaluates and draws."""
        return self.fabric.is_global_zero

    @property
    def steps_at_once(self) -> int:
        """Environment steps that one action in every environment makes, over all processes."""
        return self.envs.num_envs * self.fabric.world_size

    def state_dict(self) -> dict[str, Any]:
        """All but the weights and the replay rows, in tensors and built-in types."""
        return {
            "progress": self.progress.state_dict(),
            "warmup_steps": self.warmup_steps,
            "latest_return": self.latest_return,
            "world_model_learner": self.world_model_learner.state_dict(),
            "agent_learner": self.agent_learner.state_dict(),
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "demonstrations": None if self.demonstrations is None else self.demonstrations.state_dict(),
            "metrics": self.metrics.state_dict(),
            "schedules": {name: getattr(self.schedules, name).state_dict() for name in Schedules.__slots__},
            "precision": self.fabric._precision.state_dict(),
            "random": {
                "python": random.getstate(),
                "numpy": numpy_random_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.progress.load_state_dict(state["progress"])
        self.warmup_steps = state["warmup_steps"]
        self.latest_return = state["latest_return"]
        for name in ("world_model_learner", "agent_learner", "collector", "replay", "metrics"):
            getattr(self, name).load_state_dict(state[name])
        # A run may begin or cease to have demonstrations on the way.
        if self.demonstrations is not None and state.get("demonstrations") is not None:
            self.demonstrations.load_state_dict(state["demonstrations"])
        for name in Schedules.__slots__:
            getattr(self.schedules, name).load_state_dict(state["schedules"][name])
        self.fabric._precision.load_state_dict(state["precision"])
        version, internal, gauss = state["random"]["python"]
        random.setstate((version, tuple(internal), gauss))
        if "numpy" in state["random"]:
            set_numpy_random_state(state["random"]["numpy"])
        torch.set_rng_state(state["random"]["torch"])
        if torch.cuda.is_available() and state["random"]["cuda"]:
            torch.cuda.set_rng_state_all(state["random"]["cuda"])


def build_training(config: Config, fabric: Fabric, directory: RunDirectory, tracker: Tracker) -> Training:
    """Build every object of a run. Weights are the same in every process, experience and sampling differ."""
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # nothing here draws from it, but environments and parts of others may
    # Each process has environments of its own, with seeds of their own.
    envs = VectorEnv(config.env, seed=config.seed, env_index_offset=fabric.global_rank * config.env.num_envs)
    world_model, agent = build_modules(config, envs.obs_shape, envs.num_actions)
    loop, compile = config.loop, should_compile(config.compile, fabric)
    learners = [
        Learner(fabric, module, name=name, max_nonfinite=loop.max_nonfinite_updates, compile=compile, worth_it=worth_it)
        for name, module, worth_it in (
            ("world_model", world_model, full_windows(loop.batch_length)),
            ("agent", agent, None),
        )
    ]
    world_model.eval()
    agent.eval()
    replay = build_replay(config, fabric, envs.obs_shape)
    mixed = config.demonstrations
    demonstrated = (0, 0) if mixed.path is None else (mixed.batch_size, mixed.imagination_batch_size)
    player = player_factory(config, world_model, agent, compile=compile)(envs)
    torch.manual_seed(config.seed + fabric.global_rank)
    return Training(
        config=config,
        fabric=fabric,
        directory=directory,
        tracker=tracker,
        envs=envs,
        replay=replay,
        world_model=world_model,
        agent=agent,
        world_model_learner=learners[0],
        agent_learner=learners[1],
        collector=Collector(envs, player, replay, seed=config.seed + fabric.global_rank, returns=loop.training_return),
        imagine=imagination(config, world_model, agent, fabric.device, compile=compile),
        schedules=Schedules(
            world_model=Ratio(loop.world_model_updates_per_env_step),
            agent=Ratio(loop.agent_updates_per_env_step),
            log=Every(loop.log_every_env_steps),
            media=Every(loop.media_every_env_steps),
            evaluation=Every(config.evaluation.every_env_steps),
            checkpoint=Every(config.checkpoint.every),
        ),
        # A budget below the random start is a trial of the machinery: train for half of it all the same.
        warmup_steps=loop.warmup_steps if loop.warmup_steps < loop.env_steps else loop.env_steps // 2,
        batch_size=share(loop.batch_size, fabric.world_size, "loop.batch_size"),
        imagined_rows=share(config.imagination.batch_size, fabric.world_size, "imagination.batch_size"),
        demonstrations=build_demonstrations(config, fabric, envs, replay.device),
        demonstrated_windows=share(demonstrated[0], fabric.world_size, "demonstrations.batch_size"),
        demonstrated_contexts=share(demonstrated[1], fabric.world_size, "demonstrations.imagination_batch_size"),
        segments=ReplaySegments(directory.replay / str(fabric.global_rank)),
        clock=EveryMinutes(config.checkpoint.every_minutes),
    )


def numpy_random_state() -> dict[str, Any]:
    """NumPy's global random state, in built-in types."""
    state: dict[str, Any] = np.random.get_state(legacy=False)
    return {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}}


def set_numpy_random_state(state: dict[str, Any]) -> None:
    """Raises ``ValueError`` for a position outside the state, which NumPy would follow."""
    if not 0 <= state["state"]["pos"] <= len(state["state"]["key"]) == 624:
        raise ValueError("NumPy's random state makes no sense")
    np.random.set_state(state)


def save_config(directory: RunDirectory, config: Config) -> None:
    write_atomically(directory.config_file, to_yaml(config).encode())
