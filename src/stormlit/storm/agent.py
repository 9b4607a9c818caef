"""The actor-critic, improved on imagined trajectories only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F

from stormlit.nn.building import build_part
from stormlit.nn.heads import TwoHot
from stormlit.nn.optimizers import OptimizerSettings, adam
from stormlit.nn.return_normalizer import PercentileScale
from stormlit.ops.categorical import entropy, sample
from stormlit.ops.returns import lambda_returns
from stormlit.types import Losses, OneHots, PartNode, Trajectory


class ActorCritic(L.LightningModule):
    """Policy and value function over the world model's state (STORM section 3.2, equations 6 to 10).

    latent_dim: Z.  world_hidden_dim: D of the world model.  num_actions: A.  hidden_dim: width of actor and critic.
    agent_state, actor, critic: component nodes.  gamma: discount.  lambda_: of the returns.
    lambda_bootstrap: see ``lambda_returns``.  slow_critic_target: what the slow critic's term pulls towards, the slow
    value (equation 7) or the lambda-return of slow values (the released code, agents.py).
    loss_scales: weight of each term: policy, entropy, value, slow_value.
    slow_critic_decay: of the slow critic's moving average.  return_normalizer: options of ``PercentileScale``.
    value_bins, value_low, value_high: of the critic's symlog two-hot encoding.
    """

    def __init__(
        self,
        latent_dim: int,
        world_hidden_dim: int,
        num_actions: int,
        *,
        hidden_dim: int,
        agent_state: PartNode,
        actor: PartNode,
        critic: PartNode,
        gamma: float,
        lambda_: float,
        lambda_bootstrap: Literal["next", "current"],
        loss_scales: Mapping[str, float],
        slow_critic_decay: float,
        slow_critic_target: Literal["value", "lambda_return"],
        return_normalizer: Mapping[str, Any],
        value_bins: int,
        value_low: float,
        value_high: float,
        optimizer: OptimizerSettings,
    ) -> None:
        super().__init__()
        self.num_actions, self.gamma, self.lambda_ = num_actions, gamma, lambda_
        self.lambda_bootstrap, self.slow_critic_target = lambda_bootstrap, slow_critic_target
        self.loss_scales, self.slow_critic_decay = dict(loss_scales), slow_critic_decay
        self.optimizer_settings = optimizer
        self.agent_state = build_part("agent_state", agent_state, latent_dim, world_hidden_dim, key="agent.agent_state")
        self.actor = build_part("head", actor, self.agent_state.state_dim, num_actions, hidden_dim, key="agent.actor")
        self.critic = build_part("head", critic, self.agent_state.state_dim, value_bins, hidden_dim, key="agent.critic")
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.value_encoding = TwoHot(value_bins, value_low, value_high)
        self.return_scale = PercentileScale(**return_normalizer)

    def policy(self, latent: Tensor | OneHots, hidden: Tensor) -> Tensor:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns log-probabilities (..., A) float32."""
        return F.log_softmax(self.actor(self.agent_state(latent, hidden)).float(), dim=-1)

    def act(self, latent: Tensor | OneHots, hidden: Tensor, *, greedy: bool = False) -> Tensor:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns sampled or most likely actions (...,) int64."""
        log_probs = self.policy(latent, hidden)
        return log_probs.argmax(dim=-1) if greedy else sample(log_probs)

    def value(self, latent: Tensor | OneHots, hidden: Tensor) -> Tensor:
        """latent: (..., Z), or one-hots.  hidden: (..., D).  Returns the critic's value (...,) float32."""
        return self.value_encoding.decode(self.critic(self.agent_state(latent, hidden)))

    def training_step(self, trajectory: Trajectory, batch_idx: int = 0) -> Losses:  # type: ignore[override]
        """The losses of equation 7 on N imagined rollouts of H steps."""
        state = self.agent_state(trajectory.latent, trajectory.hidden)
        log_probs = F.log_softmax(self.actor(state[:, :-1]).float(), dim=-1)
        value_logits = self.critic(state)

        with torch.no_grad():
            value = self.value_encoding.decode(value_logits)
            slow_value = self.value_encoding.decode(self.slow_critic(state))
            returns = self._lambda_returns(trajectory, value)
            by_value = self.slow_critic_target == "value"
            slow_target = slow_value[:, :-1] if by_value else self._lambda_returns(trajectory, slow_value)
            scale = self.return_scale.update(returns)
            advantage = (returns - value[:, :-1]) / scale

        chosen = log_probs.gather(-1, trajectory.action.unsqueeze(-1)).squeeze(-1)
        policy_entropy = entropy(log_probs)
        weight = trajectory.weight
        terms = {
            "policy": -(weight * advantage * chosen).mean(),
            "entropy": -(weight * policy_entropy).mean(),
            "value": (weight * self.value_encoding.loss(value_logits[:, :-1], returns)).mean(),
            "slow_value": (weight * self.value_encoding.loss(value_logits[:, :-1], slow_target)).mean(),
        }
        metrics = {
            "entropy": policy_entropy.detach().mean(),
            "value": value.mean(),
            "return": returns.mean(),
            "return_scale": scale,
            "advantage_std": advantage.std(),
            "imagined_reward": trajectory.reward.mean(),
            "imagined_weight": weight.mean(),
        }
        return Losses(terms, self.loss_scales, metrics)

    def _lambda_returns(self, trajectory: Trajectory, value: Tensor) -> Tensor:
        discount = self.gamma * trajectory.continuation
        return lambda_returns(trajectory.reward, value, discount, self.lambda_, self.lambda_bootstrap)

    @torch.no_grad()
    def update_slow_critic(self, stepped: Tensor) -> None:
        """Move the slow critic towards the critic; call once after every optimiser step.

        stepped: bool scalar on the module's device; where it is False, nothing moves.
        """
        slow = list(self.slow_critic.parameters())
        towards = torch._foreach_sub(list(self.critic.parameters()), slow)
        torch._foreach_mul_(towards, (1.0 - self.slow_critic_decay) * stepped)
        torch._foreach_add_(slow, towards)

    def configure_optimizers(self, fused: bool = True) -> torch.optim.Adam:
        return adam(self.parameters(), self.optimizer_settings, fused=fused)
