"""Returns of imagined trajectories."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def lambda_returns(
    reward: Tensor, value: Tensor, discount: Tensor, lambda_: float, bootstrap: Literal["next", "current"] = "next"
) -> Tensor:
    """Lambda-returns by STORM's equation 8.

        G_t = r_t + d_t [(1 - lambda) V(s_{t+1}) + lambda G_{t+1}],   G_H = V(s_H)

    reward: (N, H).  value: (N, H + 1).  discount: (N, H), gamma times the probability of going on after action t.
    bootstrap: "next" is the equation; "current" has V(s_t) in place of V(s_{t+1}), as the released code does
    (weipu-zhang/STORM, agents.py).
    Returns (N, H) float32.  Raises ``ValueError`` when the shapes do not fit.
    """
    if reward.ndim != 2 or discount.shape != reward.shape or value.shape != (reward.shape[0], reward.shape[1] + 1):
        raise ValueError(
            f"expected reward (N, H), discount (N, H) and value (N, H + 1), got "
            f"{tuple(reward.shape)}, {tuple(discount.shape)} and {tuple(value.shape)}"
        )
    value, discount = value.float(), discount.float()
    one_step_value = value[:, 1:] if bootstrap == "next" else value[:, :-1]
    one_step = reward.float() + discount * (1.0 - lambda_) * one_step_value
    carried = discount * lambda_
    following = value[:, -1]
    returns: list[Tensor] = []
    for t in reversed(range(reward.shape[1])):
        following = torch.addcmul(one_step[:, t], carried[:, t], following)
        returns.append(following)
    return torch.stack(returns[::-1], dim=1)


def trajectory_weights(continuation: Tensor, alive: Tensor) -> Tensor:
    """Probability that each imagined state is still inside its episode.

    continuation: (N, H), probability of going on after action t.  alive: (N,), 1 where the first state is not already
    past an end.  Returns (N, H): ``w_0 = alive``, ``w_t = w_{t-1} c_{t-1}``.
    """
    return torch.cumprod(torch.cat([alive.float().unsqueeze(1), continuation[:, :-1].float()], dim=1), dim=1)
