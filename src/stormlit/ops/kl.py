"""The two halves of the balanced KL loss between what the world model sees and what it expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor


def kl_balance(
    divergence: Callable[[Tensor, Tensor], Tensor],
    posterior: Tensor,
    prior: Tensor,
    mask: Tensor,
    free_bits: float,
    clip: Literal["step", "mean"] = "step",
) -> tuple[Tensor, Tensor, Tensor]:
    """Dynamics and representation losses, STORM's equation 5, for distributions of any kind.

        dyn = max(free_bits, KL(sg(posterior) || prior)),   rep = max(free_bits, KL(posterior || sg(prior)))

    with the maximum taken at every step, then the mean over the steps where ``mask`` holds. With ``clip="mean"`` the
    maximum is taken of the mean instead, as the released code does (weipu-zhang/STORM, sub_models/world_models.py).
    divergence: the KL of a posterior from a prior, or what stands for it, in nats over the leading axes.
    posterior, prior: (B, T, ...) distributions of the same step.  mask: (B, T) bool.  free_bits: nats.
    Returns the scalars dyn, rep and the detached mean KL in nats.
    """
    weight = mask / mask.sum().clamp(min=1)
    dyn, rep = divergence(posterior.detach(), prior), divergence(posterior, prior.detach())
    kl = (dyn.detach() * weight).sum()
    if clip == "mean":
        return (dyn * weight).sum().clamp(min=free_bits), (rep * weight).sum().clamp(min=free_bits), kl
    return (dyn.clamp(min=free_bits) * weight).sum(), (rep.clamp(min=free_bits) * weight).sum(), kl
