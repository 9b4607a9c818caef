"""Diagonal normal distributions, each given by its means and standard deviations in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def divergence(mean: Tensor, std: Tensor, other_mean: Tensor, other_std: Tensor) -> Tensor:
    """KL divergence in nats of one normal from another, summed over the last axis.

        ln(other_std / std) + (std^2 + (mean - other_mean)^2) / (2 other_std^2) - 1/2

    All (..., Z).  Returns (...,).
    """
    ratio = std / other_std
    shift = (mean - other_mean) / other_std
    return (0.5 * (ratio.square() + shift.square() - 1.0) - ratio.log()).sum(dim=-1)


def entropy(std: Tensor) -> Tensor:
    """Differential entropy in nats, ``ln(std sqrt(2 pi e))``, summed over the last axis.  (..., Z).  Returns (...,)."""
    return (std.log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum(dim=-1)


def sample(mean: Tensor, std: Tensor) -> Tensor:
    """``mean + std noise`` (the reparameterisation of Kingma and Welling 2014).  Both (..., Z).  Returns (..., Z)."""
    return mean + std * torch.randn_like(mean)
