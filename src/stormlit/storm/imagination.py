"""Imagination: from real contexts, let the policy act in the world model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch

from stormlit.data import Batch, Trajectory
from stormlit.ops.returns import trajectory_weights
from stormlit.registry import Option
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel


class Imagination:
    """Rollouts of the policy in the world model, as a function of ``batch_size`` contexts.

    With ends="hard" the continuation is 1 where its probability is at least one half and 0 elsewhere, and nothing that
    follows an end weighs less, as in the released code (weipu-zhang/STORM, sub_models/world_models.py).
    """

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

    @torch.no_grad()
    def __call__(self, context: Batch) -> Trajectory:
        """Roll the policy out for ``horizon`` steps after each context.

        context: (N, C, ...) real steps.  The heads run once over the finished rollout. Both modules should be in
        evaluation mode.
        """
        capacity = context.action.shape[1] + self.horizon
        state = self.world_model.start_imagination(context, capacity, from_posterior=self.from_posterior)
        latents, hiddens, actions = [state.latent], [state.hidden], []
        for _ in range(self.horizon):
            action = self.agent.act(state.latent, state.hidden)
            state = self.world_model.step(state, action)
            actions.append(action)
            latents.append(state.latent)
            hiddens.append(state.hidden)
        hidden = torch.stack(hiddens, dim=1)
        continuation = self.world_model.continuation(hidden[:, 1:])
        if self.hard_ends:
            continuation = (continuation >= 0.5).float()
            weight = torch.ones_like(continuation)
        else:  # a rollout from the prior has begun past the end if its context's last step was one
            past_the_end = context.terminated[:, -1] & (not self.from_posterior)
            weight = trajectory_weights(continuation, ~past_the_end)
        return Trajectory(
            latent=torch.stack(latents, dim=1),
            hidden=hidden,
            action=torch.stack(actions, dim=1),
            reward=self.world_model.reward(hidden[:, 1:]),
            continuation=continuation,
            weight=weight,
        )
