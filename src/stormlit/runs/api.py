"""stormlit from Python: load a trained run in one line, and its environment in another."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import torch

from stormlit.analysis.evaluate import EVALUATION_ROW
from stormlit.config.schema import Config
from stormlit.envs import EnvSettings, VectorEnv, env_facts
from stormlit.envs import make_env as make_gymnasium_env
from stormlit.runs.allowed_changes import changed_configuration
from stormlit.runs.assembly import build_modules, player_factory
from stormlit.runs.checkpoint import find_checkpoint, load_modules
from stormlit.runs.directory import RunDirectory
from stormlit.storm.acting import Player
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel


@dataclass(slots=True)
class Trained:
    """A trained run, in evaluation mode and float32.

    player: acts in one environment.  checkpoint: the folder the weights came from.
    action_meanings: the environment's name of each discrete action.
    """

    world_model: WorldModel
    agent: ActorCritic
    player: Player
    config: Config
    directory: RunDirectory
    checkpoint: Path
    action_meanings: list[str]


def load(
    reference: str, *, run_dir: str = "runs", device: str | torch.device = "cpu", overrides: tuple[str, ...] = ()
) -> Trained:
    """Load a run's newest checkpoint that is whole, or the one that is named.

    reference: a run's name, its MLflow run id, or the path of a run or checkpoint.  run_dir: where runs are looked for.
    overrides: ``key=value`` changes to the run's configuration, such as ``evaluation.episodes=5``.
    Raises ``CheckpointError`` when it cannot be found, trusted or fitted, ``ConfigError`` for a bad override.
    """
    directory, checkpoint, _ = find_checkpoint(reference, Path(run_dir).expanduser())
    folder = checkpoint.folder
    with changed_configuration(folder, directory, overrides) as config:
        facts = env_facts(config.env)
        world_model, agent = build_modules(config, facts.observation_space, facts.action_space)
        load_modules(checkpoint, world_model, agent)
    world_model.to(device).eval()
    agent.to(device).eval()
    player = player_factory(config, world_model, agent)(1)
    return Trained(world_model, agent, player, config, directory, folder, facts.action_meanings)


def play(trained: Trained, steps: int) -> ReplayBuffer:
    """So many new steps of the policy in each environment, from episodes that training has not had."""
    config = trained.config
    envs = VectorEnv(config.env, seed=config.seed, env_index_offset=EVALUATION_ROW)
    with contextlib.closing(envs):
        space, device = envs.observation_space, torch.device("cpu")
        replay = ReplayBuffer(steps * envs.num_envs, envs.num_envs, space, device, config.seed, envs.action_space)
        player = player_factory(config, trained.world_model, trained.agent)(envs.num_envs)
        collector = Collector(envs, player, replay, seed=config.seed)
        for _ in range(steps):
            collector.step(collector.select_action(random=False))
    return replay


def make_env(settings: Config | EnvSettings | str) -> gymnasium.Env:
    """The environment of a configuration, of ``env`` settings, or of an Atari game's name such as "Pong".

    Observations are as ``ObservationSpace`` says they are stored, (Y, X, 3) uint8 of a game, actions as ``ActionSpace``
    says.  Raises ``EnvironmentSetupError`` for anything else.
    """
    if isinstance(settings, str):
        settings = EnvSettings(game=settings)
    return make_gymnasium_env(settings.env if isinstance(settings, Config) else settings)
