"""From a configuration to the objects it describes; the only place where configuration meets the parts."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stormlit.analysis.evaluate import Evaluation, OnStep, evaluate, evaluate_baselines
from stormlit.config.checks import check_windows_fit
from stormlit.config.schema import Config
from stormlit.data import Batch, Trajectory
from stormlit.demonstrations import DemonstrationBuffer
from stormlit.envs import VectorEnv
from stormlit.errors import ConfigError
from stormlit.nn.compilation import Compiled, should_compile
from stormlit.registry import options
from stormlit.spaces import ActionSpace, ObservationSpace
from stormlit.storm.acting import Player
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.imagination import Imagination
from stormlit.storm.learner import Learner
from stormlit.storm.replay import Experience, ReplayBuffer, Windows
from stormlit.storm.training import Plan, Ratio, Training
from stormlit.storm.world_model import WorldModel

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def build_training(config: Config, fabric: Fabric) -> Training:
    """Build all that learns. Weights are the same in every process, experience and sampling differ.

    Raises what is wrong with the input, before anything is written.
    """
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)  # nothing here draws from it, but environments and parts of others may
    # Each process has environments of its own, with seeds of their own.
    envs = VectorEnv(config.env, seed=config.seed, env_index_offset=fabric.global_rank * config.env.num_envs)
    world_model, agent = build_modules(config, envs.observation_space, envs.action_space)
    loop, compile = config.loop, should_compile(config.compile, fabric)
    most = loop.max_nonfinite_updates
    learners = [
        Learner(fabric, module, name=name, max_nonfinite=most, compile=compile)
        for name, module in (("world_model", world_model), ("agent", agent))
    ]
    world_model.eval()
    agent.eval()
    replay = build_replay(config, fabric, envs.observation_space, envs.action_space)
    world_model.reports_windows = replay.needs_losses
    agent.return_normalizer.gathers = fabric.world_size > 1
    player = player_factory(config, world_model, agent, compile=compile)(envs.num_envs)
    torch.manual_seed(config.seed + fabric.global_rank)
    return Training(
        fabric=fabric,
        world_model=world_model,
        agent=agent,
        world_model_learner=learners[0],
        agent_learner=learners[1],
        collector=Collector(envs, player, replay, seed=config.seed + fabric.global_rank, returns=loop.training_return),
        experience=build_experience(config, fabric, envs, replay),
        imagine=imagination(config, world_model, agent, fabric.device, compile=compile),
        plan=Plan(
            env_steps=loop.env_steps,
            # A budget below the random start is a trial of the machinery: train for half of it all the same.
            warmup_steps=loop.warmup_steps if loop.warmup_steps < loop.env_steps else loop.env_steps // 2,
            world_model=Ratio(loop.world_model_updates_per_env_step),
            agent=Ratio(loop.agent_updates_per_env_step),
            overlap=loop.overlap,
        ),
    )


def build_modules(
    config: Config, observations: ObservationSpace | tuple[int, ...], actions: ActionSpace | int
) -> tuple[WorldModel, ActorCritic]:
    """World model and agent for an environment.

    observations: what they are; (Y, X, C) is short for images.  actions: what they are, or how many.
    """
    from stormlit.storm.lightning_modules import LightningActorCritic, LightningWorldModel

    world_model = LightningWorldModel(
        ObservationSpace.of(observations), actions, **dataclasses.asdict(config.world_model)
    )
    check_windows_fit(config, world_model.sequence_model.max_length)
    widths = world_model.latent_dim, world_model.hidden_dim
    agent = LightningActorCritic(*widths, actions, **dataclasses.asdict(config.agent))
    return world_model, agent


def player_factory(
    config: Config, world_model: WorldModel, agent: ActorCritic, *, compile: bool = False
) -> Callable[[int], Player]:
    """Builds players for a number of environments."""
    options = dataclasses.asdict(config.player)
    return lambda num_envs: Player(world_model, agent, num_envs, compile, **options)


def run_evaluation(
    config: Config, fabric: Fabric, world_model: WorldModel, agent: ActorCritic, on_step: OnStep | None = None
) -> Evaluation:
    """The agent's returns over ``evaluation.episodes`` whole episodes, in the run's precision."""
    player, how = player_factory(config, world_model, agent), config.evaluation
    with fabric.autocast():
        return evaluate(
            "agent", player, greedy=how.greedy, selection=how.selection, on_step=on_step, **_episodes(config)
        )


def run_baselines(config: Config, on_step: Callable[[str], OnStep] | None = None) -> list[Evaluation]:
    """The returns of ``evaluation.baselines`` over the same episodes; see ``evaluate_baselines``."""
    return evaluate_baselines(config.evaluation.baselines, on_step=on_step, **_episodes(config))


def _episodes(config: Config) -> dict[str, Any]:
    names = ("episodes", "num_envs", "max_steps_per_episode")
    return {"settings": config.env, "seed": config.seed, **{name: getattr(config.evaluation, name) for name in names}}


def imagination(
    config: Config, world_model: WorldModel, agent: ActorCritic, device: torch.device, *, compile: bool
) -> Callable[[Batch], Trajectory]:
    """The rollouts that the configuration asks for, as a function of their contexts."""
    rollouts = Imagination(world_model, agent, **dataclasses.asdict(config.imagination))
    if not compile:
        return rollouts
    compiled = Compiled(rollouts.__call__, "imagination", device)
    # What a CUDA graph returns is gone with the next one, and the agent's update is one.
    return (lambda context: compiled(context).clone()) if device.type == "cuda" else compiled


def build_replay(
    config: Config,
    fabric: Fabric,
    observations: ObservationSpace | tuple[int, ...],
    actions: ActionSpace | None = None,
) -> ReplayBuffer:
    """One process's share of the buffer; ``auto`` puts it on the GPU when it takes under half of its free memory."""
    space = ObservationSpace.of(observations)
    capacity = per_process(config.replay.capacity, fabric.world_size, "replay.capacity")
    rows, longest = capacity // config.env.num_envs, max(config.loop.batch_length, config.imagination.context_length)
    if rows < longest:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} leaves {rows} steps of each environment in each of "
            f"{fabric.world_size} processes, fewer than one window of {longest}: expected at least "
            f"{longest * config.env.num_envs * fabric.world_size}"
        )
    device = fabric.device if config.replay.device == "cuda" else torch.device("cpu")
    if config.replay.device == "cuda" and fabric.device.type != "cuda":
        raise ConfigError("replay.device=cuda needs training on a GPU; choose auto or cpu")
    if config.replay.device == "auto" and fabric.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(fabric.device)
        if capacity * space.nbytes < free / 2:
            device = fabric.device
    seed = config.seed + 1_000_003 * fabric.global_rank
    try:
        how = {name: getattr(config.replay, name) for name in options(ReplayBuffer)}
        return ReplayBuffer(capacity, config.env.num_envs, space, device, seed, actions, **how)
    except RuntimeError as error:  # what PyTorch's allocators raise
        size = capacity * space.nbytes / 2**30
        seen = f"frames of {space.image[0]}x{space.image[1]}" if space.image else str(space)
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} needs {size:,.1f} GiB for {seen}, which {device} does not have"
        ) from error


def build_demonstrations(
    config: Config, fabric: Fabric, envs: VectorEnv, device: torch.device
) -> DemonstrationBuffer | None:
    """What ``demonstrations.path`` names, None where it names nothing. Every process has all of it."""
    path = config.demonstrations.path
    if path is None:
        return None
    return DemonstrationBuffer(
        [Path(file) for file in (path if isinstance(path, list) else [path])],
        config.env,
        envs,
        timing=config.demonstrations.timing,
        life_losses=config.demonstrations.life_losses,
        shortest=max(config.loop.batch_length, config.imagination.context_length),
        device=device,
        seed=config.seed + 1_000_003 * fabric.global_rank + 1,  # not the replay buffer's
        mark_episode_starts=config.replay.episode_starts == "marked",
    )


def build_experience(config: Config, fabric: Fabric, envs: VectorEnv, replay: ReplayBuffer) -> Experience:
    """This process's share of what is drawn for updates and imaginations."""

    def share(section: str, name: str = "batch_size") -> int:
        key = f"{section}.{name}"
        return per_process(getattr(getattr(config, section), name), fabric.world_size, key)

    demonstrations = build_demonstrations(config, fabric, envs, replay.device)
    mixed = (0, 0)
    if demonstrations is not None:
        mixed = share("demonstrations"), share("demonstrations", "imagination_batch_size")
    batch = Windows(share("loop"), mixed[0], config.loop.batch_length)
    contexts = Windows(share("imagination"), mixed[1], config.imagination.context_length)
    return Experience(replay, demonstrations, fabric.device, batch=batch, contexts=contexts)


def per_process(total: int, processes: int, key: str) -> int:
    """One process's part of a total; raises ``ConfigError`` when it cannot be divided."""
    if total % processes:
        raise ConfigError(f"{key}={total} cannot be divided among {processes} processes")
    return total // processes
