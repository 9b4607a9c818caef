"""The actor-critic, improved on imagined trajectories only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from stormlit.data import Losses, PartNode, Trajectory
from stormlit.nn.building import build_part, build_policy
from stormlit.nn.heads import READINGS, Scoring
from stormlit.nn.optimizers import OptimizerSettings
from stormlit.ops.returns import lambda_returns
from stormlit.registry import DEFAULTS, Option
from stormlit.spaces import ActionSpace

OPTIMIZER = {"learning_rate": 3e-5, "eps": 1e-5, "clip_norm": 100.0}


@dataclass
class AgentLossScales:
    """Weights of the terms of equation 7."""

    policy: Annotated[float, Option("weight of the policy gradient")] = 1.0
    entropy: Annotated[float, Option("weight of the policy's entropy (eta)")] = 3e-4
    value: Annotated[float, Option("weight of the critic's cross-entropy with the returns")] = 1.0
    slow_value: Annotated[float, Option("weight of its cross-entropy with the slow critic's target")] = 1.0


class ReturnNormalizer(nn.Module):
    """Exponential moving average of a high and a low percentile of the returns; their distance, at least ``minimum``.

    STORM's equation 9 (S = percentile(G, 95) - percentile(G, 5), divided by max(1, S)); the average starts at the first
    value, so that early scales are not biased towards zero. State is kept in buffers and thus in every checkpoint.

    The released code has start="zero" and percentile="kth" (weipu-zhang/STORM, agents.py and utils.py).
    """

    bounds: Tensor
    started: Tensor
    quantiles: Tensor

    def __init__(
        self,
        *,
        decay: Annotated[float, Option("of the moving average of both percentiles", 0, 1)] = 0.99,
        low: Annotated[float, Option("lower percentile of the returns", 0, 100, below="high")] = 5.0,
        high: Annotated[float, Option("upper percentile of the returns", 0, 100)] = 95.0,
        minimum: Annotated[float, Option("smallest scale", 1e-12, 1e12)] = 1.0,
        start: Annotated[
            Literal["first", "zero"], Option("the moving average starts at the first percentiles, or at zero")
        ] = "first",
        percentile: Annotated[
            Literal["linear", "kth"],
            Option("linear: between the two nearest returns; kth: the floor(p N)-th smallest return itself"),
        ] = "linear",
    ) -> None:
        super().__init__()
        self.decay, self.minimum, self.start, self.percentile = decay, minimum, start, percentile
        self.gathers = False  # whether the returns of every process are taken in, in all of them at the same time
        self.fractions = (low / 100.0, high / 100.0)
        self.register_buffer("quantiles", torch.tensor([low, high]) / 100.0, persistent=False)
        self.register_buffer("bounds", torch.zeros(2))
        self.register_buffer("started", torch.tensor(start == "zero"))

    def update(self, returns: Tensor) -> Tensor:
        """Take in returns of any shape; return the new scale, a float32 scalar. No host sync.

        Where it ``gathers``, every process must have as many.
        """
        values = returns.detach().float().flatten()
        if self.gathers:
            everywhere = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(everywhere, values)
            values = torch.cat(everywhere)
        # Neither kthvalue, which CUDA has no deterministic form of, nor quantile, which torch 2.11 cannot compile.
        ordered = values.sort().values
        if self.percentile == "kth":
            bounds = torch.stack([ordered[max(int(part * len(values)), 1) - 1] for part in self.fractions])
        else:
            rank = self.quantiles * (len(values) - 1)
            below = rank.floor()
            bounds = torch.lerp(ordered[below.long()], ordered[rank.ceil().long()], rank - below)
        moved = torch.where(self.started, torch.lerp(bounds, self.bounds, self.decay), bounds)
        self.bounds.copy_(moved)
        self.started.fill_(True)
        return (moved[1] - moved[0]).clamp(min=self.minimum)


class ActorCritic(nn.Module):
    """Policy and value function over the world model's state (STORM section 3.2, equations 6 to 10).

    latent_dim: Z.  world_hidden_dim: D of the world model.  actions: what can be done; a number is short for as
    many discrete actions.  The defaults are the paper's.
    slow_critic_target: the slow value is equation 7, the lambda-return of slow values the released code (agents.py).
    """

    def __init__(
        self,
        latent_dim: int,
        world_hidden_dim: int,
        actions: ActionSpace | int,
        *,
        hidden_dim: Annotated[int, Option("width of actor and critic", 1, 10**5)] = 512,
        agent_state: Annotated[PartNode, Option("what policy and critic see", part="agent_state")] = "both",
        actor: Annotated[PartNode, Option("the policy's network", part="head")] = "mlp",
        policy: Annotated[
            PartNode, Option("what makes actions of its output; auto: what fits them", part="policy")
        ] = "auto",
        critic: Annotated[PartNode, Option("the value's network", part="head")] = "mlp",
        gamma: Annotated[float, Option("discount of one step", 0, 1)] = 0.985,
        lambda_: Annotated[float, Option("weight of longer returns in the lambda-return", 0, 1)] = 0.95,
        lambda_bootstrap: Annotated[
            Literal["next", "current"],
            Option("value in its (1 - lambda) term: of the next state (the paper) or of the current one"),
        ] = "next",
        loss_scales: Annotated[Mapping[str, float], Option(group=AgentLossScales)] = DEFAULTS,
        slow_critic_decay: Annotated[float, Option("of the slow critic's moving average", 0, 1)] = 0.98,
        slow_critic_target: Annotated[
            Literal["value", "lambda_return"],
            Option("what the slow critic's term pulls the critic towards"),
        ] = "value",
        return_normalizer: Annotated[Mapping[str, Any], Option(group=ReturnNormalizer)] = DEFAULTS,
        value_loss: Annotated[Scoring, Option("as world_model.reward_loss, of the value")] = "twohot",
        value_bins: Annotated[int, Option("symlog two-hot bins of the value", 3, 10**5)] = 255,
        value_low: Annotated[float, Option("symlog of the lowest bin", below="value_high")] = -20.0,
        value_high: Annotated[float, Option("symlog of the highest bin")] = 20.0,
        optimizer: Annotated[Mapping[str, float], Option(group=OptimizerSettings)] = OPTIMIZER,
    ) -> None:
        super().__init__()
        self.action_space, self.gamma, self.lambda_ = ActionSpace.of(actions), gamma, lambda_
        self.lambda_bootstrap, self.slow_critic_target = lambda_bootstrap, slow_critic_target
        self.loss_scales, self.slow_critic_decay = asdict(AgentLossScales(**loss_scales)), slow_critic_decay
        self.optimizer_settings = OptimizerSettings(**{**OPTIMIZER, **optimizer})
        self.agent_state = build_part("agent_state", agent_state, latent_dim, world_hidden_dim, key="agent.agent_state")
        self.distribution = build_policy(policy, self.action_space, key="agent.policy")
        widths = self.agent_state.state_dim, self.distribution.out_dim, hidden_dim
        self.actor = build_part("head", actor, *widths, key="agent.actor")
        self.value_encoding = READINGS[value_loss](value_bins, value_low, value_high)
        outputs = self.value_encoding.outputs
        self.critic = build_part("head", critic, self.agent_state.state_dim, outputs, hidden_dim, key="agent.critic")
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_normalizer = ReturnNormalizer(**return_normalizer)

    def policy(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).

        Returns the distribution over actions, (..., P) float32: log-probabilities (..., A) if they are discrete.
        """
        return self.distribution(self.actor(self.agent_state(latent, hidden)))

    def act(self, latent: Tensor, hidden: Tensor, *, greedy: bool = False) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).

        Returns sampled or most likely actions (..., *shape); those of a Box are not clipped yet.
        """
        distribution = self.policy(latent, hidden)
        return self.distribution.mode(distribution) if greedy else self.distribution.sample(distribution)

    def value(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).  Returns the critic's value (...,) float32."""
        return self.value_encoding.decode(self.critic(self.agent_state(latent, hidden)))

    def losses(self, trajectory: Trajectory) -> Losses:
        """The losses of equation 7 on N imagined rollouts of H steps."""
        state = self.agent_state(trajectory.latent, trajectory.hidden)
        distribution = self.distribution(self.actor(state[:, :-1]))
        value_logits = self.critic(state)

        with torch.no_grad():
            value = self.value_encoding.decode(value_logits)
            slow_value = self.value_encoding.decode(self.slow_critic(state))
            returns = self._lambda_returns(trajectory, value)
            by_value = self.slow_critic_target == "value"
            slow_target = slow_value[:, :-1] if by_value else self._lambda_returns(trajectory, slow_value)
            scale = self.return_normalizer.update(returns)
            advantage = (returns - value[:, :-1]) / scale

        log_prob = self.distribution.log_prob(distribution, trajectory.action)
        entropy = self.distribution.entropy(distribution)
        weight = trajectory.weight
        terms = {
            "policy": -(weight * advantage * log_prob).mean(),
            "entropy": -(weight * entropy).mean(),
            "value": (weight * self.value_encoding.loss(value_logits[:, :-1], returns)).mean(),
            "slow_value": (weight * self.value_encoding.loss(value_logits[:, :-1], slow_target)).mean(),
        }
        metrics = {
            "entropy": entropy.detach().mean(),
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
