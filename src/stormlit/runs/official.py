"""Checkpoints of the public implementation (weipu-zhang/STORM), two state dicts, become an ordinary run.

Names, shapes, LayerNorm epsilons and layer order are those of the released modules. Some tensors are not just renamed:
the first layer of the token mixer is one matrix there and two here (latent, action), queries, keys and values are made
by three matrices there and one here, and the released code predicts the end of an episode where stormlit predicts its
continuation, so that the sign of the last layer changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stormlit.config.compose import compose, to_yaml
from stormlit.envs import env_facts, env_name
from stormlit.errors import CheckpointError
from stormlit.runs.assembly import build_modules
from stormlit.runs.checkpoint import CheckpointWriter, list_checkpoints, load_weights, read_tensors
from stormlit.runs.directory import RunDirectory, exclusive
from stormlit.spaces import ActionSpace

State = dict[str, Tensor]

_THEIR_BLOCK = r"storm_transformer\.layer_stack\.(\d+)\."
_OUR_BLOCK = r"sequence_model.blocks.\1."
# (pattern of the released name, name here), tried in order; {-N} stands for a layer's number, less N.
WORLD_MODEL_NAMES: tuple[tuple[str, str], ...] = (
    (r"encoder\.backbone\.(.+)", r"encoder.layers.\1"),
    (r"dist_head\.post_head\.(.+)", r"latent.posterior_head.\1"),
    (r"dist_head\.prior_head\.(.+)", r"latent.prior_head.\1"),
    (r"image_decoder\.backbone\.0\.weight", "decoder.project.weight"),
    (r"image_decoder\.backbone\.(\d+)\.(.+)", r"decoder.layers.{-2}.\2"),
    # The mixer's first linear layer, number 0, is split apart.
    (r"storm_transformer\.stem\.([134])\.(.+)", r"sequence_model.mixer.layers.{-1}.\2"),
    (r"storm_transformer\.position_encoding\.pos_emb\.weight", "sequence_model.positions.weight"),
    (r"storm_transformer\.layer_norm\.(.+)", r"sequence_model.norm.\1"),
    (_THEIR_BLOCK + r"slf_attn\.fc\.(.+)", _OUR_BLOCK + r"attention.output.\2"),
    (_THEIR_BLOCK + r"slf_attn\.layer_norm\.(.+)", _OUR_BLOCK + r"attention_norm.\2"),
    (_THEIR_BLOCK + r"pos_ffn\.w_1\.(.+)", _OUR_BLOCK + r"feedforward.0.\2"),
    (_THEIR_BLOCK + r"pos_ffn\.w_2\.(.+)", _OUR_BLOCK + r"feedforward.2.\2"),
    (_THEIR_BLOCK + r"pos_ffn\.layer_norm\.(.+)", _OUR_BLOCK + r"feedforward_norm.\2"),
    (r"reward_decoder\.backbone\.(.+)", r"reward_head.hidden.\1"),
    (r"reward_decoder\.head\.(.+)", r"reward_head.output.\1"),
    (r"termination_decoder\.backbone\.(.+)", r"continuation_head.hidden.\1"),
    (r"termination_decoder\.head\.0\.(.+)", r"continuation_head.output.\1"),
)
# Three matrices there, one here; the names are in the order of its rows.
ATTENTION_INPUT = re.compile(_THEIR_BLOCK + r"slf_attn\.w_(qs|ks|vs)\.weight")
MIXER_INPUT = "storm_transformer.stem.0.weight"


@dataclass(frozen=True, slots=True)
class OfficialSizes:
    """What the shapes tell.  latent_dim: Z.  Everything else under the configuration's own names."""

    num_actions: int
    latent_dim: int
    hidden_dim: int
    num_layers: int
    max_length: int
    agent_hidden_dim: int
    agent_num_layers: int

    def overrides(self) -> list[str]:
        """The sizes as configuration overrides."""
        groups = round(self.latent_dim**0.5)  # the released code has as many classes as groups
        return [
            f"world_model.hidden_dim={self.hidden_dim}",
            f"world_model.latent.groups={groups}",
            f"world_model.latent.classes={groups}",
            f"world_model.sequence_model.num_layers={self.num_layers}",
            f"world_model.sequence_model.max_length={self.max_length}",
            f"agent.hidden_dim={self.agent_hidden_dim}",
            f"agent.actor.num_layers={self.agent_num_layers}",
            f"agent.critic.num_layers={self.agent_num_layers}",
        ]


def import_official(world_model_file: Path, agent_file: Path, overrides: Sequence[str], output: Path) -> str:
    """Write a run with one checkpoint, at step 0, of the released weights; returns what was done, for a person.

    overrides: of ``configs/official.yaml``, the environment above all; the sizes are read off the shapes, except the
    number of attention heads, which no shape tells.
    Raises ``CheckpointError`` with the name of the first tensor that is missing or misshapen.
    """
    world_model_weights, agent_weights = _read(world_model_file), _read(agent_file)
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
        writer.begin(to_yaml(config), world_model, agent)
        folder = writer.commit(keep=1)
        run.write_identity("")
    return (
        f"imported {env_name(config.env)}: width {sizes.hidden_dim}, {sizes.num_layers} layers, "
        f"{sizes.num_actions} actions\n"
        f"checkpoint  {folder}\n"
        f"to see it   stormlit eval {output}, stormlit dream {output}\n"
        f"to go on    stormlit train official env.game={env_name(config.env)} run.init_from={output}"
    )


def _read(path: Path) -> State:
    """Read one of the released state dicts without executing anything in it; raises ``CheckpointError``."""
    state = read_tensors(path)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: '{name}' is not a tensor, as everything in a state dict should be")
    return state


def official_sizes(world_model: State, agent: State) -> OfficialSizes:
    """Infer the sizes from the shapes; raises ``CheckpointError`` with the first tensor that does not fit."""
    mixer = _matrix(world_model, MIXER_INPUT)
    prior = _matrix(world_model, "dist_head.prior_head.weight")
    positions = _matrix(world_model, "storm_transformer.position_encoding.pos_emb.weight")
    latent_dim, hidden_dim = prior.shape
    if mixer.shape[0] != hidden_dim or mixer.shape[1] <= latent_dim:
        raise CheckpointError(
            f"'{MIXER_INPUT}' has shape {tuple(mixer.shape)}, expected ({hidden_dim}, {latent_dim} + number of actions)"
        )
    return OfficialSizes(
        num_actions=mixer.shape[1] - latent_dim,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        num_layers=_count(world_model, _THEIR_BLOCK),
        max_length=positions.shape[0],
        agent_hidden_dim=_matrix(agent, "actor.0.weight").shape[0],
        agent_num_layers=_count(agent, r"actor\.(\d+)\.weight") // 3,  # linear, norm and ReLU each
    )


def world_model_state(official: State) -> State:
    """The state dict of ``WorldModel`` with the released weights; raises ``CheckpointError`` for an unknown tensor."""
    state: State = {}
    latent_dim = _matrix(official, "dist_head.prior_head.weight").shape[0]
    for name, tensor in official.items():
        if name == MIXER_INPUT:
            state["sequence_model.mixer.latent.weight"] = tensor[:, :latent_dim]
            state["sequence_model.mixer.action.weight"] = tensor[:, latent_dim:]
        elif match := ATTENTION_INPUT.fullmatch(name):
            parts = [_matrix(official, name.replace(f"w_{match[2]}.", f"w_{part}.")) for part in ("qs", "ks", "vs")]
            state[f"sequence_model.blocks.{match[1]}.attention.query_key_value.weight"] = torch.cat(parts)
        else:
            predicts_end = name.startswith("termination_decoder.head.")
            state[_renamed(name, WORLD_MODEL_NAMES)] = -tensor if predicts_end else tensor
    return state


def agent_state(official: State, own: Mapping[str, Tensor]) -> State:
    """The state dict of ``ActorCritic`` with the released weights.

    own: of a fresh agent; the return scale is not among what the released code saves, and keeps its start.
    """
    last = 3 * (_count(official, r"actor\.(\d+)\.weight") // 3)
    names = (
        (rf"(actor|critic|slow_critic)\.{last}\.(.+)", r"\1.output.\2"),
        (r"(actor|critic|slow_critic)\.(\d+\..+)", r"\1.hidden.\2"),
    )
    kept = {name: tensor for name, tensor in own.items() if name.startswith("return_normalizer.")}
    return {**{_renamed(name, names): tensor for name, tensor in official.items()}, **kept}


def _renamed(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, own in names:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"{-(\d)}", lambda less: str(int(match[1]) - int(less[1])), match.expand(own))
    raise CheckpointError(f"the released code has no tensor called '{name}'")


def _matrix(state: State, name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"this is no checkpoint of the released code: it has no tensor '{name}'")
    if state[name].ndim != 2:
        raise CheckpointError(f"tensor '{name}' has shape {tuple(state[name].shape)}, expected two dimensions")
    return state[name]


def _count(state: State, pattern: str) -> int:
    """One more than the largest number in the names that match."""
    return max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1) + 1
