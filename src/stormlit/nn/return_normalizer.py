"""The scale by which advantages are divided."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from stormlit.registry import Option


class ReturnNormalizer(nn.Module):
    """Exponential moving average of a high and a low percentile of the returns; their distance, at least ``minimum``.

    STORM's equation 9 (S = percentile(G, 95) - percentile(G, 5), divided by max(1, S)); the average starts at the first
    value, so that early scales are not biased towards zero. State is kept in buffers and thus in every checkpoint.

    The released code has start="zero" and percentile="kth" (weipu-zhang/STORM, agents.py and utils.py).
    """

    bounds: Tensor
    started: Tensor
    quantiles: Tensor

    def __init__(
        self,
        *,
        decay: Annotated[float, Option("of the moving average of both percentiles", 0, 1)] = 0.99,
        low: Annotated[float, Option("lower percentile of the returns", 0, 100, below="high")] = 5.0,
        high: Annotated[float, Option("upper percentile of the returns", 0, 100)] = 95.0,
        minimum: Annotated[float, Option("smallest scale", 1e-12, 1e12)] = 1.0,
        start: Annotated[
            Literal["first", "zero"], Option("the moving average starts at the first percentiles, or at zero")
        ] = "first",
        percentile: Annotated[
            Literal["linear", "kth"],
            Option("linear: between the two nearest returns; kth: the floor(p N)-th smallest return itself"),
        ] = "linear",
    ) -> None:
        super().__init__()
        self.decay, self.minimum, self.start, self.percentile = decay, minimum, start, percentile
        self.fractions = (low / 100.0, high / 100.0)
        self.register_buffer("quantiles", torch.tensor([low, high]) / 100.0, persistent=False)
        self.register_buffer("bounds", torch.zeros(2))
        self.register_buffer("started", torch.tensor(start == "zero"))

    def update(self, returns: Tensor) -> Tensor:
        """Take in returns of any shape; return the new scale, a float32 scalar. No host sync."""
        values = returns.detach().float().flatten()
        # Neither kthvalue, which CUDA has no deterministic form of, nor quantile, which torch 2.11 cannot compile.
        ordered = values.sort().values
        if self.percentile == "kth":
            bounds = torch.stack([ordered[max(int(part * len(values)), 1) - 1] for part in self.fractions])
        else:
            rank = self.quantiles * (len(values) - 1)
            below = rank.floor()
            bounds = torch.lerp(ordered[below.long()], ordered[rank.ceil().long()], rank - below)
        moved = torch.where(self.started, torch.lerp(bounds, self.bounds, self.decay), bounds)
        self.bounds.copy_(moved)
        self.started.fill_(True)
        return self.scale()

    def scale(self) -> Tensor:
        """The current scale, a float32 scalar."""
        return (self.bounds[1] - self.bounds[0]).clamp(min=self.minimum)
