"""Optimisers of the two modules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from stormlit.registry import Option


@dataclass
class OptimizerSettings:
    """Adam, with the gradient clipped to a global norm before each step."""

    learning_rate: Annotated[float, Option("Adam's step size", 0, 10)] = 1e-4
    eps: Annotated[float, Option("Adam's term against division by zero", 0, 1)] = 1e-8
    clip_norm: Annotated[float, Option("largest global gradient norm; what exceeds it is scaled down", 1e-12, 1e12)] = (
        1000.0
    )
    decay: Annotated[
        float, Option("last share of the run over which the step size falls in a straight line to 0; 0: it stays", 0, 1)
    ] = 0.0

    def decayed(self, done: float) -> float:
        """What is left of the step size, in [0, 1].  done: share of the run's environment steps taken; may exceed 1."""
        return min(max(1.0 - done, 0.0) / self.decay, 1.0) if self.decay else 1.0


def adam(parameters: Iterable[nn.Parameter], settings: OptimizerSettings, *, fused: bool) -> torch.optim.Adam:
    """Adam over the parameters that require gradients; ``fused`` into one kernel for all of them."""
    trainable = [p for p in parameters if p.requires_grad]
    return torch.optim.Adam(trainable, lr=settings.learning_rate, eps=settings.eps, fused=fused)
