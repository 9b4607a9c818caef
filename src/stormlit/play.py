"""Evaluation as the configuration asks for it, of a trained agent and of the baselines beside it."""

from __future__ import annotations

from collections.abc import Callable

from lightning.fabric import Fabric

from stormlit.agent import ActorCritic
from stormlit.assemble import player_factory
from stormlit.config import Config
from stormlit.evaluate import Evaluation, evaluate, evaluate_baselines
from stormlit.types import Episode
from stormlit.world_model import WorldModel


def play_agent(
    config: Config,
    fabric: Fabric,
    world_model: WorldModel,
    agent: ActorCritic,
    on_episode: Callable[[Episode], None] | None = None,
) -> Evaluation:
    """The agent's returns over ``evaluation.episodes`` whole episodes, in the run's precision."""
    settings = config.evaluation
    with fabric.autocast():
        return evaluate(
            "agent",
            player_factory(config, world_model, agent),
            config.env,
            episodes=settings.episodes,
            num_envs=settings.num_envs,
            seed=config.seed,
            greedy=settings.greedy,
            selection=settings.selection,
            on_episode=on_episode,
        )


def play_baselines(config: Config) -> list[Evaluation]:
    """The returns of ``evaluation.baselines`` over as many episodes, from the same seeds."""
    settings = config.evaluation
    return evaluate_baselines(
        settings.baselines, config.env, episodes=settings.episodes, num_envs=settings.num_envs, seed=config.seed
    )
