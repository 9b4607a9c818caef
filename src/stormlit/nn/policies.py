"""How the actor's output is read as a distribution over actions: a part for each kind of action space."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from stormlit.ops import categorical as ops
from stormlit.ops import normal
from stormlit.registry import Option, part_class, register
from stormlit.spaces import KINDS, ActionSpace, Kind


@register("policy", "categorical")
class CategoricalPolicy(nn.Module):
    """One of A actions, by softmax; the paper's.

    action_space: Discrete.  unimix: as in ``ops.categorical.unimix_log_probs``.

    When to use: for Discrete actions. A ``unimix`` of 0.01 keeps every action possible, as DreamerV3 does.
    """

    fits: ClassVar[tuple[Kind, ...]] = ("discrete",)

    def __init__(
        self,
        action_space: ActionSpace,
        *,
        unimix: Annotated[float, Option("share of the uniform distribution that is mixed in", 0, 1)] = 0.0,
    ) -> None:
        super().__init__()
        self.out_dim, self.unimix = action_space.num_actions, unimix

    def forward(self, output: Tensor) -> Tensor:
        """output: (..., A) of the actor.  Returns log-probabilities (..., A) float32."""
        return ops.unimix_log_probs(output, self.unimix)

    def log_prob(self, distribution: Tensor, action: Tensor) -> Tensor:
        """distribution: (..., A).  action: (...,) int64.  Returns (...,)."""
        return distribution.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., A).  Returns nats (...,)."""
        return ops.entropy(distribution)

    def mode(self, distribution: Tensor) -> Tensor:
        """distribution: (..., A).  Returns the most likely actions (...,) int64."""
        return distribution.argmax(dim=-1)

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., A).  Returns drawn actions (...,) int64."""
        return ops.sample(distribution)


@register("policy", "categoricals")
class CategoricalsPolicy(nn.Module):
    """Several choices that do not depend on one another, each by softmax; a bit is a choice among two.

    action_space: MultiDiscrete or MultiBinary, with C = sum of its classes.  unimix: of each choice.

    When to use: for MultiDiscrete and MultiBinary actions.
    """

    fits: ClassVar[tuple[Kind, ...]] = ("multi_discrete", "multi_binary")

    def __init__(
        self,
        action_space: ActionSpace,
        *,
        unimix: Annotated[float, Option("share of the uniform distribution in each choice", 0, 1)] = 0.0,
    ) -> None:
        super().__init__()
        self.classes, self.unimix = list(action_space.classes), unimix
        self.out_dim = sum(self.classes)

    def forward(self, output: Tensor) -> Tensor:
        """output: (..., C) of the actor.  Returns the choices' log-probabilities side by side, (..., C) float32."""
        return torch.cat([ops.unimix_log_probs(logits, self.unimix) for logits in self._choices(output)], dim=-1)

    def log_prob(self, distribution: Tensor, action: Tensor) -> Tensor:
        """distribution: (..., C).  action: (..., dims) int64.  Returns the sum over choices (...,)."""
        chosen = zip(self._choices(distribution), action.split(1, dim=-1), strict=True)
        return torch.cat([log_probs.gather(-1, choice) for log_probs, choice in chosen], dim=-1).sum(dim=-1)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., C).  Returns nats (...,): the sum of the choices' entropies."""
        return ops.entropy(distribution)  # a sum over all classes is one over choices

    def mode(self, distribution: Tensor) -> Tensor:
        """distribution: (..., C).  Returns (..., dims) int64."""
        return torch.stack([log_probs.argmax(dim=-1) for log_probs in self._choices(distribution)], dim=-1)

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., C).  Returns (..., dims) int64."""
        return torch.stack([ops.sample(log_probs) for log_probs in self._choices(distribution)], dim=-1)

    def _choices(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.classes, dim=-1)


@register("policy", "bounded_normal")
class BoundedNormalPolicy(nn.Module):
    """Independent normal distributions with a mean in (-1, 1) and a bounded standard deviation, as in DreamerV3
    (danijar/dreamerv3, embodied/jax/heads.py)::

        mean = tanh(m),   std = min_std + (max_std - min_std) sigmoid(s + 2)

    What is drawn may lie outside [-1, 1]. It is scored as drawn, and clipped on its way to the world model and to an
    environment.

    action_space: Box.

    When to use: for Box actions.
    """

    fits: ClassVar[tuple[Kind, ...]] = ("box",)

    def __init__(
        self,
        action_space: ActionSpace,
        *,
        max_std: Annotated[float, Option("largest standard deviation", 1e-6, 1e3)] = 1.0,
        min_std: Annotated[float, Option("smallest standard deviation", 1e-6, 1e3, below="max_std")] = 0.1,
    ) -> None:
        super().__init__()
        self.out_dim = 2 * action_space.dims
        self.min_std, self.max_std = min_std, max_std

    def forward(self, output: Tensor) -> Tensor:
        """output: (..., 2 dims) of the actor, m and s.  Returns means and standard deviations (..., 2 dims) float32."""
        mean, std = output.float().chunk(2, dim=-1)
        std = self.min_std + (self.max_std - self.min_std) * torch.sigmoid(std + 2.0)
        return torch.cat([torch.tanh(mean), std], dim=-1)

    def log_prob(self, distribution: Tensor, action: Tensor) -> Tensor:
        """distribution: (..., 2 dims).  action: (..., dims) float32, not clipped.  Returns the log-density (...,)."""
        mean, std = distribution.chunk(2, dim=-1)
        distance = (action - mean) / std
        return (-0.5 * distance.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=-1)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., 2 dims).  Returns nats (...,), the differential entropy: it may be negative."""
        _, std = distribution.chunk(2, dim=-1)
        return normal.entropy(std)

    def mode(self, distribution: Tensor) -> Tensor:
        """distribution: (..., 2 dims).  Returns the means (..., dims)."""
        return distribution.chunk(2, dim=-1)[0]

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., 2 dims).  Returns (..., dims) float32, not clipped."""
        mean, std = distribution.chunk(2, dim=-1)
        return normal.sample(mean, std)


@register("policy", "auto")
class FittingPolicy(nn.Module):
    """The policy that fits the action space, with its defaults.

    Discrete: ``categorical``.  MultiDiscrete and MultiBinary: ``categoricals``.  Box: ``bounded_normal``.
    Building it builds that one.

    When to use: the default.
    """

    fits: ClassVar[tuple[Kind, ...]] = tuple(KINDS)

    def __new__(cls, action_space: ActionSpace) -> Any:
        chosen = {"discrete": "categorical", "box": "bounded_normal"}.get(action_space.kind, "categoricals")
        return part_class("policy", chosen)(action_space)
