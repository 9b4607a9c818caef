"""Imagination: what a rollout holds, and that the cached one equals full passes over the same tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from small import imagine, random_batch, small_agent, small_world_model
from stormlit.data import Batch, Trajectory
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel

HORIZON = 5
ROWS, CONTEXT = 4, 6
# Row 0 ends inside its context; row 1 begins an episode with its last frame; row 2 with its first.
STARTS = ((0, 3), (1, CONTEXT - 1), (2, 0))

every_sequence_model = pytest.mark.parametrize("sequence_model", ["transformer", "gru"])
every_start = pytest.mark.parametrize("from_posterior", [False, True])


def _rollout(
    sequence_model: str, from_posterior: bool, mixed: bool = False
) -> tuple[WorldModel, ActorCritic, Batch, Trajectory]:
    world_model = small_world_model(sequence_model)
    agent, context = small_agent(world_model), random_batch(ROWS, CONTEXT, starts=STARTS)
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        trajectory = imagine(world_model, agent, context, horizon=HORIZON, from_posterior=from_posterior)
    return world_model, agent, context, trajectory


@every_sequence_model
@every_start
def test_the_cached_rollout_equals_full_passes(sequence_model: str, from_posterior: bool) -> None:
    """The recorded latents and actions, forced through the sequence model together with the context."""
    world_model, _, context, trajectory = _rollout(sequence_model, from_posterior)
    torch.manual_seed(7)
    context_latent = world_model.sample_posterior(context.obs)  # the first draws of the rollout
    known = CONTEXT - 1 if from_posterior else CONTEXT
    if from_posterior:
        assert torch.equal(trajectory.latent[:, 0], context_latent[:, -1])
    latent = torch.cat([context_latent[:, :known], trajectory.latent[:, :-1]], dim=1)
    action = torch.cat([context.action[:, :known], trajectory.action], dim=1)
    is_first = torch.zeros(action.shape, dtype=torch.bool)
    is_first[:, :CONTEXT] = context.is_first
    with torch.no_grad():
        hidden = world_model.sequence_model(latent, action, is_first)[:, known - 1 :]
    if from_posterior:  # a first frame has no past
        hidden[context.is_first[:, -1], 0] = 0.0
    torch.testing.assert_close(trajectory.hidden, hidden, atol=1e-5, rtol=0)


@every_start
def test_actions_are_drawn_from_the_policy_at_each_state(from_posterior: bool) -> None:
    """A policy that is certain of the group-0 class it sees must have played it."""

    def certain(latent: Tensor, hidden: Tensor) -> Tensor:
        return (latent[..., :3] * 200).log_softmax(dim=-1)

    world_model = small_world_model()
    agent = small_agent(world_model)
    agent.policy = certain
    context = random_batch(32, 4)
    trajectory = imagine(world_model, agent, context, horizon=HORIZON, from_posterior=from_posterior)
    seen = trajectory.latent[:, :-1, :3]
    shows_a_class = seen.any(-1)
    assert shows_a_class.sum() > 50
    assert torch.equal(trajectory.action[shows_a_class], seen.argmax(-1)[shows_a_class])


@every_sequence_model
@every_start
def test_rewards_and_continuations_are_read_after_each_action(sequence_model: str, from_posterior: bool) -> None:
    world_model, _, _, trajectory = _rollout(sequence_model, from_posterior)
    with torch.no_grad():
        for t in range(HORIZON):
            after = trajectory.hidden[:, t + 1]
            torch.testing.assert_close(trajectory.reward[:, t], world_model.reward(after))
            torch.testing.assert_close(trajectory.continuation[:, t], world_model.continuation(after))


@every_start
def test_nothing_is_learned_after_an_end_that_really_happened(from_posterior: bool) -> None:
    """From the prior the first state comes after the context's last action; from the posterior it comes before."""
    world_model = small_world_model()
    context = random_batch(ROWS, CONTEXT)
    context.terminated[1, -1] = True
    context.terminated[2, -2] = True  # an earlier end, after which a new episode began
    context.is_first[2, -1] = True
    trajectory = imagine(world_model, small_agent(world_model), context, horizon=3, from_posterior=from_posterior)
    alive = [1.0, 1.0, 1.0, 1.0] if from_posterior else [1.0, 0.0, 1.0, 1.0]
    assert trajectory.weight[:, 0].tolist() == alive
    if not from_posterior:
        assert not trajectory.weight[1].any()
