"""The scale by which advantages are divided."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PercentileScale(nn.Module):
    """Exponential moving average of a high and a low percentile of the returns; their distance, at least ``minimum``.

    STORM's equation 9 (S = percentile(G, 95) - percentile(G, 5), divided by max(1, S)); the average starts at the first
    value, so that early scales are not biased towards zero. State is kept in buffers and thus in every checkpoint.

    decay: of the moving average.  low, high: percentiles in [0, 100].  minimum: smallest scale.
    """

    bounds: Tensor
    started: Tensor
    quantiles: Tensor

    def __init__(self, *, decay: float = 0.99, low: float = 5.0, high: float = 95.0, minimum: float = 1.0) -> None:
        super().__init__()
        self.decay, self.minimum = decay, minimum
        self.register_buffer("quantiles", torch.tensor([low, high]) / 100.0, persistent=False)
        self.register_buffer("bounds", torch.zeros(2))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def update(self, returns: Tensor) -> Tensor:
        """Take in returns of any shape; return the new scale, a float32 scalar. No host sync."""
        bounds = torch.quantile(returns.detach().float().flatten(), self.quantiles)
        moved = torch.where(self.started, torch.lerp(bounds, self.bounds, self.decay), bounds)
        self.bounds.copy_(moved)
        self.started.fill_(True)
        return self.scale()

    def scale(self) -> Tensor:
        """The current scale, a float32 scalar."""
        return (self.bounds[1] - self.bounds[0]).clamp(min=self.minimum)
