"""``stormlit import-official``: a checkpoint of the public implementation becomes an ordinary run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stormlit.config.compose import compose, to_yaml
from stormlit.envs import env_facts, env_name
from stormlit.errors import CheckpointError
from stormlit.runs.assembly import build_modules
from stormlit.runs.checkpoint import list_checkpoints, load_weights
from stormlit.runs.checkpoint_writer import CheckpointWriter
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.runs.official import agent_state, official_sizes, read_official, world_model_state
from stormlit.spaces import ActionSpace


def import_official(world_model_file: Path, agent_file: Path, overrides: Sequence[str], output: Path) -> str:
    """Write a run with one checkpoint, at step 0, of the released weights; returns what was done, for a person.

    overrides: of ``configs/official.yaml``, the environment above all; the sizes are read off the shapes, except the
    number of attention heads, which no shape tells.
    Raises ``CheckpointError`` with the name of the first tensor that is missing or misshapen.
    """
    world_model_weights, agent_weights = read_official(world_model_file), read_official(agent_file)
    sizes = official_sizes(world_model_weights, agent_weights)
    config = compose(["official"], [*sizes.overrides(), *overrides])
    facts = env_facts(config.env)
    space = facts.action_space
    if space != ActionSpace.of(sizes.num_actions):
        raise CheckpointError(
            f"{world_model_file} is for {sizes.num_actions} actions, but {env_name(config.env)} has "
            f"{space.num_actions if space.is_discrete else space}: choose the game it was trained on with env.game=NAME"
        )
    world_model, agent = build_modules(config, facts.observation_space, facts.action_space)
    load_weights(world_model, world_model_state(world_model_weights), "world_model")
    load_weights(agent, agent_state(agent_weights, agent.state_dict()), "agent")

    run = RunDirectory(output)
    with exclusive(run):
        if list_checkpoints(run):
            raise CheckpointError(f"there is a run in {output} already: choose another folder with -o DIR")
        writer = CheckpointWriter(run, env_steps=0)
        writer.begin()
        writer.add("config.yaml", to_yaml(config).encode())
        writer.add_tensors("weights.pt", {"world_model": world_model.state_dict(), "agent": agent.state_dict()})
        folder = writer.commit(keep=1)
        run.write_identity("")
    return (
        f"imported {env_name(config.env)}: width {sizes.hidden_dim}, {sizes.num_layers} layers, "
        f"{sizes.num_actions} actions\n"
        f"checkpoint  {folder}\n"
        f"to see it   stormlit eval {output}, stormlit dream {output}\n"
        f"to go on    stormlit train official env.game={env_name(config.env)} run.init_from={output}"
    )
