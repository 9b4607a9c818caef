"""Stochastic latents: what a frame is compressed into, and what the sequence model predicts of the next one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from stormlit.ops import categorical, normal
from stormlit.registry import Option, register


@register("latent", "categorical")
class CategoricalLatent(nn.Module):
    """``groups`` one-hot variables of ``classes`` classes each (STORM section 3.1).

    embed_dim: E.  hidden_dim: D.  Distributions are log-probabilities (..., G, K) in float32.

    When to use: the default. Its prior can hold several different next frames at once, which one normal cannot.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        groups: Annotated[int, Option("categorical variables", low=1)] = 32,
        classes: Annotated[int, Option("classes of each variable", low=2)] = 32,
        unimix: Annotated[
            float, Option("share of the uniform distribution mixed into posterior and prior", 0, 1)
        ] = 0.01,
    ) -> None:
        super().__init__()
        self.groups, self.classes, self.unimix = groups, classes, unimix
        self.latent_dim = groups * classes
        self.posterior_head = nn.Linear(embed_dim, self.latent_dim)
        self.prior_head = nn.Linear(hidden_dim, self.latent_dim)

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns (..., G, K)."""
        return self._distribution(self.posterior_head(embed))

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns (..., G, K)."""
        return self._distribution(self.prior_head(hidden))

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K).  Returns one-hot groups (..., Z) float32 with straight-through gradients."""
        return categorical.sample_straight_through(distribution).flatten(-2)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K).  Returns nats (...,)."""
        return -(distribution.exp() * distribution).sum(dim=(-2, -1))

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Both (..., G, K).  Returns the KL divergence in nats (...,)."""
        return categorical.divergence(posterior, prior)

    def _distribution(self, logits: Tensor) -> Tensor:
        return categorical.unimix_log_probs(logits.unflatten(-1, (self.groups, self.classes)), self.unimix)


@register("latent", "gaussian")
class GaussianLatent(nn.Module):
    """Independent normals with a mean and a bounded standard deviation each (Dreamer, Hafner et al. 2020).

    embed_dim: E.  hidden_dim: D.  Distributions are (..., 2, Z): means, then standard deviations.

    When to use: for what moves smoothly, as bodies and joints, and to compare with earlier Dreamers.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        dimensions: Annotated[int, Option("numbers that make up a latent", low=1)] = 64,
        min_std: Annotated[float, Option("smallest standard deviation", 1e-4, below="max_std")] = 0.1,
        max_std: Annotated[float, Option("largest standard deviation", 1e-4)] = 1.0,
    ) -> None:
        super().__init__()
        self.latent_dim, self.min_std, self.max_std = dimensions, min_std, max_std
        self.posterior_head = nn.Linear(embed_dim, 2 * dimensions)
        self.prior_head = nn.Linear(hidden_dim, 2 * dimensions)

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns (..., 2, Z)."""
        return self._distribution(self.posterior_head(embed))

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns (..., 2, Z)."""
        return self._distribution(self.prior_head(hidden))

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., 2, Z).  Returns (..., Z) float32 with gradients to means and standard deviations."""
        return normal.sample(*distribution.unbind(-2))

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., 2, Z).  Returns the differential entropy in nats (...,), which may be negative."""
        return normal.entropy(distribution[..., 1, :])

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Both (..., 2, Z).  Returns the KL divergence in nats (...,)."""
        return normal.divergence(*posterior.unbind(-2), *prior.unbind(-2))

    def _distribution(self, features: Tensor) -> Tensor:
        mean, spread = features.float().unflatten(-1, (2, self.latent_dim)).unbind(-2)
        std = self.min_std + (self.max_std - self.min_std) * spread.sigmoid()
        return torch.stack([mean, std], dim=-2)


@register("latent", "deterministic")
class DeterministicLatent(nn.Module):
    """Numbers between -1 and 1 without chance; half the squared distance stands for the KL divergence.

    That is the KL divergence of normals with these means and standard deviation 1.
    embed_dim: E.  hidden_dim: D.  Distributions are the numbers themselves, (..., Z).

    When to use: to ask what chance in the latent is worth. Of several possible next frames it dreams the average.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        dimensions: Annotated[int, Option("numbers that make up a latent", low=1)] = 64,
    ) -> None:
        super().__init__()
        self.latent_dim = dimensions
        self.posterior_head, self.prior_head = nn.Linear(embed_dim, dimensions), nn.Linear(hidden_dim, dimensions)

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns (..., Z)."""
        return self.posterior_head(embed).float().tanh()

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns (..., Z)."""
        return self.prior_head(hidden).float().tanh()

    def sample(self, distribution: Tensor) -> Tensor:
        """(..., Z).  Returns the same."""
        return distribution

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., Z).  Returns zeros (...,): there is no chance in it."""
        return torch.zeros_like(distribution[..., 0])

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Both (..., Z).  Returns half the squared distance (...,)."""
        return 0.5 * (posterior - prior).square().sum(dim=-1)
