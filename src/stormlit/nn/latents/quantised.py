"""Latents of codes from a small set: a learned codebook (VQ), or evenly spaced numbers (FSQ).

A frame's code is the nearest one, without chance; the prior is a classifier over the codes. The divergence moves the
prior alone, since no gradient goes through the choice of a code.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import Losses
from stormlit.nn.autocast import full_precision
from stormlit.ops import categorical
from stormlit.registry import Option, register

# The logarithm of no probability: finite, so that 0 times it is 0, and exactly 0 again as a probability.
IMPOSSIBLE = -1e4


class CodeLatent(nn.Module):
    """What latents of codes share: ``groups`` codes, each the nearest to a point that the frame's embedding gives.

    embed_dim: E.  hidden_dim: D.  groups: G.  count: K codes to choose from.  code_dim: C, width of one.
    Distributions are (..., G, K + C): log-probabilities over the codes, then the point (zeros in the prior).
    """

    def __init__(self, embed_dim: int, hidden_dim: int, groups: int, count: int, code_dim: int) -> None:
        super().__init__()
        self.groups, self.count, self.code_dim = groups, count, code_dim
        self.latent_dim = groups * code_dim
        self.posterior_head = nn.Linear(embed_dim, groups * code_dim)
        self.prior_head = nn.Linear(hidden_dim, groups * count)

    def codes(self) -> Tensor:
        """All codes.  Returns (K, C) float32."""
        raise NotImplementedError

    def bounded(self, points: Tensor) -> Tensor:
        """Points where the codes lie.  (..., G, C) float32.  Returns the same shape."""
        raise NotImplementedError

    def posterior(self, embed: Tensor) -> Tensor:
        """embed: (..., E).  Returns (..., G, K + C)."""
        point = self.bounded(self.posterior_head(embed).float().unflatten(-1, (self.groups, self.code_dim)))
        chosen = categorical.one_hot(nearest(point.detach(), self.codes().detach()), self.count)
        return torch.cat([(1.0 - chosen) * IMPOSSIBLE, point], dim=-1)

    def prior(self, hidden: Tensor) -> Tensor:
        """hidden: (..., D).  Returns (..., G, K + C)."""
        logits = self.prior_head(hidden).float().unflatten(-1, (self.groups, self.count))
        return F.pad(F.log_softmax(logits, dim=-1), (0, self.code_dim))

    def sample(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K + C).  Returns codes (..., Z) float32, whose gradient is that of the point."""
        log_probs, point = self.split(distribution)
        codes = F.embedding(categorical.sample(log_probs.detach()), self.codes().detach())
        return (codes + (point - point.detach())).flatten(-2)

    def entropy(self, distribution: Tensor) -> Tensor:
        """distribution: (..., G, K + C).  Returns nats (...,), 0 for a posterior."""
        return categorical.entropy(self.split(distribution)[0]).sum(dim=-1)

    def divergence(self, posterior: Tensor, prior: Tensor) -> Tensor:
        """Both (..., G, K + C).  Returns nats (...,): the cross-entropy of the prior with the frame's codes."""
        return categorical.divergence(self.split(posterior)[0], self.split(prior)[0])

    def split(self, distribution: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (..., G, K) and points (..., G, C)."""
        log_probs, point = distribution.split([self.count, self.code_dim], dim=-1)
        return log_probs, point


@register("latent", "vq")
class VectorQuantisedLatent(CodeLatent):
    """Codes from one learned codebook, straight-through (van den Oord et al. 2017).

    Points and codes have length 1, which keeps more codes in use (Yu et al. 2022, vector-quantized image modeling).
    embed_dim: E.  hidden_dim: D.

    When to use: to compare with models over discrete tokens, as IRIS. Watch ``code_use``: a codebook can fall out of
    use.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        groups: Annotated[int, Option("codes that make up a latent", low=1)] = 16,
        codes: Annotated[int, Option("codes in the codebook", low=2)] = 512,
        code_dim: Annotated[int, Option("width of a code", low=2)] = 64,
        commitment: Annotated[float, Option("weight of the term that draws points to their codes", 0, 1e6)] = 0.25,
    ) -> None:
        super().__init__(embed_dim, hidden_dim, groups, codes, code_dim)
        self.commitment = commitment
        self.codebook = nn.Parameter(torch.randn(codes, code_dim))

    def codes(self) -> Tensor:
        """Returns (K, C) float32, rows of length 1."""
        return F.normalize(self.codebook, dim=-1)

    def bounded(self, points: Tensor) -> Tensor:
        """(..., G, C).  Returns the same directions with length 1."""
        return F.normalize(points, dim=-1)

    def auxiliary(self, posterior: Tensor) -> Losses:
        """The squared distance between points and codes, which moves the codes in one term and points in the other.

        posterior: (..., G, K + C).  Both are summed over a latent and averaged over steps.
        """
        log_probs, point = self.split(posterior)
        code = F.embedding(log_probs.argmax(dim=-1), self.codes())
        terms = {
            "codebook": (point.detach() - code).square().sum(dim=(-2, -1)).mean(),
            "commitment": (point - code.detach()).square().sum(dim=(-2, -1)).mean(),
        }
        # All groups share the codebook.
        use = code_use(log_probs.flatten(0, -2).unsqueeze(-2))
        return Losses(terms, {"codebook": 1.0, "commitment": self.commitment}, {"code_use": use})


@register("latent", "fsq")
class FiniteScalarLatent(CodeLatent):
    """Numbers from -1 to 1, each rounded to one of a few levels, straight-through (FSQ, Mentzer et al. 2023).

    The levels are evenly spaced, both ends among them.  embed_dim: E.  hidden_dim: D.

    When to use: in place of ``vq``: no codebook, so that nothing has to be kept in use.
    """

    levels: Tensor

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        groups: Annotated[int, Option("numbers that make up a latent", low=1)] = 64,
        levels: Annotated[int, Option("levels of each", low=2)] = 8,
    ) -> None:
        super().__init__(embed_dim, hidden_dim, groups, levels, 1)
        self.register_buffer("levels", torch.linspace(-1.0, 1.0, levels).unsqueeze(-1), persistent=False)

    def codes(self) -> Tensor:
        """Returns (K, 1) float32."""
        return self.levels

    def bounded(self, points: Tensor) -> Tensor:
        """(..., G, 1).  Returns numbers between -1 and 1."""
        return points.tanh()

    def auxiliary(self, posterior: Tensor) -> Losses:
        """posterior: (..., G, K + 1).  Adds no term to the loss."""
        return Losses({}, {}, {"code_use": code_use(self.split(posterior)[0])})


def nearest(points: Tensor, codes: Tensor) -> Tensor:
    """Which code is nearest.  points: (..., C) float32.  codes: (K, C) float32.  Returns (...,) int64."""
    with full_precision(points):
        # |p - c|^2 without |p|^2, which is the same for all codes.
        return (codes.square().sum(dim=-1) - 2.0 * (points @ codes.t())).argmin(dim=-1)


@torch.no_grad()
def code_use(log_probs: Tensor) -> Tensor:
    """How many codes are in use: the exponential of the entropy of the codes' frequencies, averaged over groups.

    log_probs: (..., G, K), certain.  Returns a scalar between 1 and K.
    """
    frequencies = log_probs.exp().flatten(0, -3).mean(dim=0)
    return categorical.entropy(frequencies.clamp(min=1e-30).log()).exp().mean()
