"""Imagination: from real contexts, let the policy act in the world model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from stormlit.data import Batch, Trajectory
from stormlit.nn.sparse import accepts_sparse, stack
from stormlit.ops.returns import trajectory_weights
from stormlit.registry import Option
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel


class Imagination:
    """Rollouts of the policy in the world model, as a function of ``batch_size`` contexts."""

    def __init__(
        self,
        world_model: WorldModel,
        agent: ActorCritic,
        *,
        batch_size: Annotated[int, Option("rollouts in one agent update", 1, 10**7)] = 1024,
        horizon: Annotated[int, Option("length of a rollout in steps", 1, 10**5)] = 16,
        context_length: Annotated[int, Option("real steps read before each rollout", 1, 10**5)] = 8,
        start: Annotated[
            Literal["prior", "posterior"],
            Option("one step after the context, at a predicted latent (the paper), or at its last real frame"),
        ] = "prior",
        ends: Annotated[
            Literal["weighted", "hard"],
            Option("weigh by the predicted probability of going on, or end where it is below one half"),
        ] = "weighted",
    ) -> None:
        self.world_model, self.agent = world_model, agent
        self.batch_size, self.horizon, self.context_length = batch_size, horizon, context_length
        self.from_posterior, self.hard_ends = start == "posterior", ends == "hard"

    def __call__(self, context: Batch) -> Trajectory:
        """context: (N, C, ...) real steps."""
        return imagine(
            self.world_model,
            self.agent,
            context,
            horizon=self.horizon,
            from_posterior=self.from_posterior,
            hard_ends=self.hard_ends,
        )


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
