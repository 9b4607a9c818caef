"""Imagination: from real contexts, let the policy act in the world model."""

from __future__ import annotations

import torch
from torch import Tensor

from stormlit.nn.fast.sparse import accepts_sparse, stack
from stormlit.ops.returns import trajectory_weights
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel
from stormlit.types import Batch, Trajectory


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    agent: ActorCritic,
    context: Batch,
    *,
    horizon: int,
    from_posterior: bool,
    hard_ends: bool = False,
    sparse: bool | None = None,
) -> Trajectory:
    """Roll the policy out for ``horizon`` steps after each context.

    context: (N, C, ...) real steps.  from_posterior: see ``WorldModel.start_imagination``.
    hard_ends: continuation is 1 where its probability is at least one half and 0 elsewhere, and nothing that follows an
    end weighs less, as in the released code (weipu-zhang/STORM, sub_models/world_models.py).
    sparse: whether latents are one-hots, with the same numbers, if all parts accept it; None: where that is faster.
    The heads run once over the finished rollout. Both modules should be in evaluation mode.
    """
    if sparse is None:  # adding rows beats multiplying matrices on a CPU, and loses on a GPU
        sparse = context.obs.device.type == "cpu"
    readers = (world_model.sequence_model, agent.agent_state, agent.actor, agent.critic)
    state = world_model.start_imagination(
        context,
        context.action.shape[1] + horizon,
        from_posterior=from_posterior,
        sparse=sparse and accepts_sparse(world_model.latent, *readers),
    )
    latents, hiddens, actions = [state.latent], [state.hidden], []
    for _ in range(horizon):
        action = agent.act(state.latent, state.hidden)
        state = world_model.step(state, action)
        actions.append(action)
        latents.append(state.latent)
        hiddens.append(state.hidden)
    hidden = torch.stack(hiddens, dim=1)
    continuation = world_model.continuation(hidden[:, 1:])
    if hard_ends:
        continuation = (continuation >= 0.5).float()
        weight = torch.ones_like(continuation)
    else:
        weight = trajectory_weights(continuation, _alive(context, from_posterior))
    return Trajectory(
        latent=stack(latents, dim=1),
        hidden=hidden,
        action=torch.stack(actions, dim=1),
        reward=world_model.reward(hidden[:, 1:]),
        continuation=continuation,
        weight=weight,
    )


def _alive(context: Batch, from_posterior: bool) -> Tensor:
    """1 where the first imagined state is not already past an end that really happened.  Returns (N,) float32."""
    if from_posterior:
        return torch.ones_like(context.reward[:, -1])
    return (~context.terminated[:, -1]).float()
