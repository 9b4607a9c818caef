"""Optimisers of the two modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class OptimizerSettings:
    """Adam, with the gradient clipped to a global norm before each step."""

    learning_rate: float = 1e-4
    eps: float = 1e-8
    # Largest global gradient norm; what exceeds it is scaled down.
    clip_norm: float = 1000.0


def adam(parameters: Iterable[nn.Parameter], settings: OptimizerSettings, *, fused: bool) -> torch.optim.Adam:
    """Adam over the parameters that require gradients; ``fused`` into one kernel for all of them."""
    trainable = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(trainable, lr=settings.learning_rate, eps=settings.eps, fused=fused)
