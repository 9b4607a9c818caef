"""The actor-critic: each loss term, the direction it pushes in, and the slow critic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from small import (
    ACTIONS,
    HIDDEN,
    dense_cross_entropy,
    imagine,
    random_batch,
    random_trajectory,
    small_agent,
    small_world_model,
)
from stormlit.data import Trajectory
from stormlit.nn.heads import READINGS
from stormlit.nn.optimizers import adam
from stormlit.storm.agent import ActorCritic


def _bandit(rows: int = 60) -> Trajectory:
    """One step in one state: action 0 pays 1, action 1 pays -1, action 2 nothing, and then it is over."""
    torch.manual_seed(5)
    action = torch.arange(rows).remainder(ACTIONS).unsqueeze(1)
    return Trajectory(
        latent=torch.randn(1, 1, 16).expand(rows, 2, 16),
        hidden=torch.randn(1, 1, HIDDEN).expand(rows, 2, HIDDEN),
        action=action,
        reward=torch.tensor([1.0, -1.0, 0.0])[action],
        continuation=torch.zeros(rows, 1),
        weight=torch.ones(rows, 1),
    )


def _values(agent: ActorCritic, trajectory: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
    """Critic logits, values and slow values of all states of a trajectory."""
    state = torch.cat([trajectory.latent, trajectory.hidden], dim=-1)
    with torch.no_grad():
        decode = agent.value_encoding.decode
        return agent.critic(state), decode(agent.critic(state)), decode(agent.slow_critic(state))


def test_each_term_of_the_loss_is_what_the_paper_says() -> None:
    agent, trajectory = small_agent(), random_trajectory()
    trajectory.reward *= 10
    with torch.no_grad():  # a slow critic that differs from the critic
        for parameter in agent.slow_critic.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    logits, value, slow_value = _values(agent, trajectory)
    probabilities = agent.policy(trajectory.latent[:, :-1], trajectory.hidden[:, :-1]).exp().tolist()
    losses = agent.losses(trajectory)

    rows, horizon = trajectory.action.shape
    returns = torch.zeros(rows, horizon)
    for n in range(rows):
        following = float(value[n, -1])
        for t in reversed(range(horizon)):
            ahead = (1 - agent.lambda_) * float(value[n, t + 1]) + agent.lambda_ * following
            following = float(trajectory.reward[n, t]) + agent.gamma * float(trajectory.continuation[n, t]) * ahead
            returns[n, t] = following
    scale = float(torch.quantile(returns, 0.95) - torch.quantile(returns, 0.05))
    assert scale > 2  # otherwise the test could not tell whether it is divided by
    terms = {"policy": 0.0, "entropy": 0.0, "value": 0.0, "slow_value": 0.0}
    for n in range(rows):
        for t in range(horizon):
            weight = float(trajectory.weight[n, t]) / (rows * horizon)
            policy, chosen = probabilities[n][t], int(trajectory.action[n, t])
            advantage = (float(returns[n, t]) - float(value[n, t])) / scale
            terms["policy"] -= weight * advantage * math.log(policy[chosen])
            terms["entropy"] += weight * sum(p * math.log(p) for p in policy)
            bins = agent.value_encoding.bins
            terms["value"] += weight * dense_cross_entropy(logits[n, t], float(returns[n, t]), bins)
            terms["slow_value"] += weight * dense_cross_entropy(logits[n, t], float(slow_value[n, t]), bins)
    assert {name: float(term.detach()) for name, term in losses.terms.items()} == pytest.approx(
        terms, rel=1e-3, abs=1e-4
    )
    assert float(losses.metrics["return_scale"]) == pytest.approx(scale, rel=1e-4)
    assert not any(metric.requires_grad for metric in losses.metrics.values())


@pytest.mark.parametrize("word", READINGS)
def test_every_way_of_scoring_the_value_learns_the_mean_return_or_what_it_says_of_it(word: str) -> None:
    # Returns of 3 in a third of the cases, 0 elsewhere: a mean of 1; the mean of their symlogs is ln(4) / 3.
    agent, trajectory = small_agent(value_loss=word), _bandit()
    trajectory = replace(trajectory, reward=torch.tensor([3.0, 0.0, 0.0])[trajectory.action])
    optimizer = torch.optim.Adam(agent.critic.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        agent.losses(trajectory).terms["value"].backward()
        optimizer.step()
    value = float(agent.value(trajectory.latent[0, 0], trajectory.hidden[0, 0]).detach())
    assert value == pytest.approx(1.0 if word == "symexp_twohot" else 4 ** (1 / 3) - 1, rel=0.05)


def test_actor_and_critic_each_learn_from_their_own_terms() -> None:
    for term, learning, resting in (("policy", "actor", "critic"), ("value", "critic", "actor")):
        agent = small_agent()
        agent.losses(random_trajectory()).terms[term].backward()
        assert any(p.grad is not None and p.grad.any() for p in getattr(agent, learning).parameters())
        assert not any(p.grad is not None and p.grad.any() for p in getattr(agent, resting).parameters())


def test_the_return_scale_divides_the_advantage_and_is_remembered() -> None:
    agent, trajectory = small_agent(critic={"name": "mlp", "zero_output": True}), _bandit()
    trajectory.reward *= 50
    # Values are 0, so advantages are returns: 50, -50 and 0 over a scale of 100.
    first = agent.losses(trajectory)
    log_probs = agent.policy(trajectory.latent[:, 0], trajectory.hidden[:, 0])
    expected = -float((trajectory.reward / 100 * log_probs.gather(-1, trajectory.action)).mean())
    assert float(first.metrics["return_scale"]) == pytest.approx(100.0)
    assert float(first.terms["policy"].detach()) == pytest.approx(expected, rel=1e-4)
    # Then a scale of 0, with a share of one in a hundred: 0.99 * 100.
    trajectory.reward.zero_()
    assert float(agent.losses(trajectory).metrics["return_scale"]) == pytest.approx(99.0)
    assert "return_normalizer.bounds" in agent.state_dict()


def test_the_slow_critic_follows_exactly_and_never_learns_by_itself() -> None:
    agent = small_agent()
    torch.testing.assert_close(list(agent.slow_critic.parameters()), list(agent.critic.parameters()), atol=0, rtol=0)
    optimizer = adam(agent.parameters(), agent.optimizer_settings, fused=True)
    slow = [p.clone() for p in agent.slow_critic.parameters()]
    agent.losses(random_trajectory()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in agent.slow_critic.parameters())
    optimizer.step()
    torch.testing.assert_close(list(agent.slow_critic.parameters()), slow, atol=0, rtol=0)
    agent.update_slow_critic(torch.tensor(False))
    torch.testing.assert_close(list(agent.slow_critic.parameters()), slow, atol=0, rtol=0)
    agent.update_slow_critic(torch.tensor(True))
    expected = [0.9 * old + 0.1 * new for old, new in zip(slow, agent.critic.parameters(), strict=True)]
    torch.testing.assert_close(list(agent.slow_critic.parameters()), expected)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized.isdisjoint(id(p) for p in agent.slow_critic.parameters())
    assert optimized == {id(p) for part in (agent.actor, agent.critic) for p in part.parameters()}


def test_the_agent_s_losses_never_reach_the_world_model() -> None:
    world_model = small_world_model()
    agent = small_agent(world_model)
    trajectory = imagine(world_model, agent, random_batch(), horizon=3, from_posterior=False)
    tensors = (trajectory.latent, trajectory.hidden, trajectory.reward, trajectory.continuation, trajectory.weight)
    assert not any(tensor.requires_grad for tensor in tensors)
    agent.losses(trajectory).total.backward()
    assert all(p.grad is None for p in world_model.parameters())
    assert all(p.grad is not None for part in (agent.actor, agent.critic) for p in part.parameters())


def test_acting_greedily_takes_the_most_likely_action_and_otherwise_samples() -> None:
    agent = small_agent()
    latent, hidden = torch.randn(1, 16).expand(3000, 16), torch.randn(1, HIDDEN).expand(3000, HIDDEN)
    probabilities = agent.policy(latent[0], hidden[0]).exp()
    assert (agent.act(latent, hidden, greedy=True) == probabilities.argmax()).all()
    drawn = agent.act(latent, hidden).bincount(minlength=ACTIONS) / 3000
    torch.testing.assert_close(drawn, probabilities.detach(), atol=0.04, rtol=0)
