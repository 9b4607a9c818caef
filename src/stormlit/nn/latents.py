"""Stochastic latents: what a frame is compressed into, and what the sequence model predicts of the next one."""

from __future__ import annotations

from torch import Tensor, nn

from stormlit.errors import check_option
from stormlit.ops.categorical import one_hot, sample, straight_through, unimix_log_probs
from stormlit.registry import register


@register("latent", "categorical")
class CategoricalLatent(nn.Module):
    """``groups`` one-hot variables of ``classes`` classes each (STORM section 3.1).

    embed_dim: E.  hidden_dim: D.  unimix: share of the uniform distribution mixed into posterior and prior.
    Distributions are log-probabilities (..., G, K) in float32.
    """

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, groups: int = 32, classes: int = 32, unimix: float = 0.01
    ) -> None:
        super().__init__()
        check_option("groups", groups, 1)
        check_option("classes", classes, 2)
        check_option("unimix", unimix, 0, 1)
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
        hard = one_hot(sample(distribution.detach()), self.classes)
        if distribution.requires_grad:
            hard = straight_through(hard, distribution)
        return hard.flatten(-2)

    def _distribution(self, logits: Tensor) -> Tensor:
        return unimix_log_probs(logits.unflatten(-1, (self.groups, self.classes)), self.unimix)
