"""Evaluation as the configuration asks for it, of a trained agent and of the baselines beside it."""

from __future__ import annotations

from collections.abc import Callable

from lightning.fabric import Fabric

from stormlit.config.schema import Config
from stormlit.runs.assembly import player_factory
from stormlit.storm.agent import ActorCritic
from stormlit.storm.evaluate import Evaluation, evaluate, evaluate_baselines
from stormlit.storm.world_model import WorldModel
from stormlit.types import Episode


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
