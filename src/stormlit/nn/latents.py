"""Stochastic latents: what a frame is compressed into, and what the sequence model predicts of the next one."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from stormlit.ops.categorical import one_hot, sample_probabilities, sample_unimix, unimix_log_probs
from stormlit.registry import Option, register
from stormlit.types import OneHots


@register("latent", "categorical")
class CategoricalLatent(nn.Module):
    """``groups`` one-hot variables of ``classes`` classes each (STORM section 3.1).

    embed_dim: E.  hidden_dim: D.  Distributions are log-probabilities (..., G, K) in float32.
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


def straight_through(hard: Tensor, probabilities: Tensor) -> Tensor:
    """The value of ``hard`` with the gradient of the probabilities (Bengio et al. 2013).  Both (..., K) float32."""
    # The difference is exactly zero. A function of our own would keep PyTorch from caching what it has compiled.
    return hard + (probabilities - probabilities.detach())
