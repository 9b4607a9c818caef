"""Stochastic latents: what a frame is compressed into, and what the sequence model predicts of the next one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from stormlit.data import OneHots
from stormlit.ops import categorical, normal
from stormlit.ops.categorical import one_hot, sample_probabilities, sample_unimix, unimix_log_probs
from stormlit.registry import Option, register


@register("latent", "categorical")
class CategoricalLatent(nn.Module):
    """``groups`` one-hot variables of ``classes`` classes each (STORM section 3.1).

    embed_dim: E.  hidden_dim: D.  Distributions are log-probabilities (..., G, K) in float32.

    When to use: the default. Its prior can hold several different next frames at once, which one normal cannot.
    """

    accepts_sparse = True
    group_starts: Tensor

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
        self.register_buffer("group_starts", torch.arange(groups) * classes, persistent=False)

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns (..., G, K)."""
        return self._distribution(self.posterior_head(embed))

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns (..., G, K)."""
        return self._distribution(self.prior_head(hidden))

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K).  Returns one-hot groups (..., Z) float32 with straight-through gradients."""
        probabilities = distribution.exp()
        hard = one_hot(sample_probabilities(probabilities.detach()), self.classes)
        return straight_through(hard, probabilities).flatten(-2)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K).  Returns nats (...,)."""
        return -(distribution.exp() * distribution).sum(dim=(-2, -1))

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Both (..., G, K).  Returns the KL divergence in nats (...,)."""
        return categorical.divergence(posterior, prior)

    def draw_posterior(self, embed: Tensor, *, sparse: bool) -> Tensor | OneHots:
        """embed: (..., E).  Returns a latent (..., Z) float32, or one-hots if ``sparse``; no gradients."""
        return self._draw(self.posterior_head(embed), sparse)

    def draw_prior(self, hidden: Tensor, *, sparse: bool) -> Tensor | OneHots:
        """hidden: (..., D).  Returns a latent (..., Z) float32, or one-hots if ``sparse``; no gradients."""
        return self._draw(self.prior_head(hidden), sparse)

    def _draw(self, logits: Tensor, sparse: bool) -> Tensor | OneHots:
        classes = sample_unimix(logits.detach().unflatten(-1, (self.groups, self.classes)), self.unimix)
        if sparse:
            return OneHots(classes + self.group_starts)
        return one_hot(classes, self.classes).flatten(-2)

    def _distribution(self, logits: Tensor) -> Tensor:
        return unimix_log_probs(logits.unflatten(-1, (self.groups, self.classes)), self.unimix)


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


def straight_through(hard: Tensor, probabilities: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of the probabilities (Bengio et al. 2013).  Both (..., K) float32."""
    # The difference is exactly zero. A function of our own would keep PyTorch from caching what it has compiled.
    return hard + (probabilities - probabilities.detach())
