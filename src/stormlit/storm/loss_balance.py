"""How the terms of the world model's loss are weighed against each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import Losses

HARMONISED: dict[str, tuple[str, ...]] = {
    "reconstruction": ("reconstruction", "vector_reconstruction"),
    "reward": ("reward",),
    "kl": ("dyn", "rep"),
}


class Harmony(nn.Module):
    """Learned weights of reconstruction, reward and KL (HarmonyDream, Ma et al. 2024).

        sum_i L_i / exp(s_i) + ln(1 + exp(s_i)),

    with one s for each, 0 at the start; ``dyn`` and ``rep`` share theirs, as do the
    reconstructions of images and of vectors. The fixed scales of the terms hold besides,
    and other terms keep theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(len(HARMONISED)))

    def forward(self, losses: Losses) -> Losses:
        """The same terms with their new scales, the term that keeps weights from vanishing, and the weights."""
        weights = torch.exp(-self.log_scale)
        scales: dict[str, float | Tensor] = dict(losses.scales)
        for weight, names in zip(weights.unbind(), HARMONISED.values(), strict=True):
            scales.update({name: weight * losses.scales[name] for name in names if name in losses.scales})
        metrics = {
            f"harmony/{name}": weight for name, weight in zip(HARMONISED, weights.detach().unbind(), strict=True)
        }
        terms = {**losses.terms, "harmony": F.softplus(self.log_scale).sum()}
        return Losses(terms, {**scales, "harmony": 1.0}, {**losses.metrics, **metrics})
