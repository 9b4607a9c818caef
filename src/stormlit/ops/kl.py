"""The two halves of the balanced KL loss between what the world model sees and what it expected."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def kl_balance(
    posterior: Tensor, prior: Tensor, mask: Tensor, free_bits: float, clip: Literal["step", "mean"] = "step"
) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamics and representation losses, STORM's equation 5.

        dyn = max(free_bits, KL(sg(posterior) || prior)),   rep = max(free_bits, KL(posterior || sg(prior)))

    with the maximum taken at every step, then the mean over the steps where ``mask`` holds. With ``clip="mean"`` the
    maximum is taken of the mean instead, as the released code does (weipu-zhang/STORM, sub_models/world_models.py).
    posterior, prior: (B, T, G, K) log-probabilities, float32, of the same step.  mask: (B, T) bool.  free_bits: nats.
    Returns the scalars dyn, rep and the detached mean KL in nats.
    """
    weight = mask / mask.sum().clamp(min=1)
    probabilities = posterior.exp()
    negative_entropy = (probabilities * posterior).sum(dim=(-2, -1))
    dyn = negative_entropy.detach() - (probabilities.detach() * prior).sum(dim=(-2, -1))
    rep = negative_entropy - (probabilities * prior.detach()).sum(dim=(-2, -1))
    kl = (dyn.detach() * weight).sum()
    if clip == "mean":
        return (dyn * weight).sum().clamp(min=free_bits), (rep * weight).sum().clamp(min=free_bits), kl
    return (dyn.clamp(min=free_bits) * weight).sum(), (rep.clamp(min=free_bits) * weight).sum(), kl
