"""Terms of the world model's loss: the balanced KL divergence, and reconstruction, whole and where something moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F


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


MOVES = 0.1  # of the range from black to white, in any channel: more than the noise of resizing


def focus_weights(obs: Tensor, focus: float) -> Tensor:
    """Weights of pixels whose mean over all of the batch is 1: ``1 - focus + focus * distance / mean(distance)``.

    The distance is the squared one from the batch's mean frame, averaged over channels, so that a pixel's share of the
    weight is its share of the variance. Batches without any motion get 1 everywhere.
    obs: (B, T, C, Y, X) in [0, 1].  focus: in [0, 1].  Returns (B, T, 1, Y, X).
    """
    distance = (obs - obs.mean(dim=(0, 1))).square().mean(dim=2, keepdim=True) + 1e-8
    return 1.0 - focus + focus * distance / distance.mean()


def reconstruction_error(obs_hat: Tensor, obs: Tensor, focus: float = 0.0) -> Tensor:
    """Squared error, summed over everything; with ``focus`` each pixel's is weighted by ``focus_weights``.

    obs_hat, obs: (B, T, C, Y, X), obs in [0, 1].  Returns a scalar.
    """
    if focus == 0.0:
        return F.mse_loss(obs_hat, obs, reduction="sum")
    return ((obs_hat - obs).square() * focus_weights(obs, focus)).sum()


def frame_errors(obs_hat: Tensor, obs: Tensor) -> dict[str, float]:
    """Mean squared errors over pixels and channels: of all of the frames (``all``) and of what moves (``moving``).

    A pixel moves where, in some channel, it is more than ``MOVES`` away from the mean of the frames at its place;
    ``moving`` is left out where nothing does.  obs_hat, obs: (T, C, Y, X) in [0, 1].
    """
    error = (obs_hat - obs).square().mean(dim=1)
    moves = ((obs - obs.mean(dim=0)).abs() > MOVES).any(dim=1)
    found = {"all": float(error.mean())}
    return {**found, "moving": float(error[moves].mean())} if moves.any() else found
