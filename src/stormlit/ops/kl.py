"""The two halves of the balanced KL loss between what the world model sees and what it expected."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from stormlit.ops.categorical import kl_divergence


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` over the rows where ``mask`` is True; 0 when there is none.  Both (B, T).  Returns a scalar."""
    kept = mask.to(x.dtype)
    return (x * kept).sum() / kept.sum().clamp(min=1.0)


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
    dyn = kl_divergence(posterior.detach(), prior).sum(dim=-1)
    rep = kl_divergence(posterior, prior.detach()).sum(dim=-1)
    kl = masked_mean(dyn.detach(), mask)
    if clip == "mean":
        return masked_mean(dyn, mask).clamp(min=free_bits), masked_mean(rep, mask).clamp(min=free_bits), kl
    return masked_mean(dyn.clamp(min=free_bits), mask), masked_mean(rep.clamp(min=free_bits), mask), kl
