"""How likely each window of the replay buffer is to be drawn for an update of the world model."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from stormlit.registry import Option, register


@register("sampler", "uniform")
class UniformSampler(nn.Module):
    """Every window with the same probability; the paper's.

    When to use: the default.
    """

    needs_losses = False

    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        """uses, loss: (W,) float32.  Returns (W,) float32."""
        return torch.ones_like(uses)


@register("sampler", "least_used")
class LeastUsedSampler(nn.Module):
    """Windows that were drawn seldom, by 1 / (1 + uses) (Delta-IRIS) or exp(-uses / temperature) (Drama).

    When to use: where the buffer grows while it is drawn from: new steps would otherwise be seen far less often than
    old ones.
    """

    needs_losses = False

    def __init__(
        self,
        *,
        form: Annotated[
            Literal["inverse", "exponential"], Option("1 / (1 + uses), or exp(-uses / temperature)")
        ] = "inverse",
        temperature: Annotated[float, Option("of the exponential form, in uses", 1e-3, 1e9)] = 10.0,
    ) -> None:
        super().__init__()
        self.form, self.temperature = form, temperature

    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        """uses, loss: (W,) float32.  Returns (W,) float32."""
        return 1.0 / (1.0 + uses) if self.form == "inverse" else (-uses / self.temperature).softmax(0)


@register("sampler", "curious")
class CuriousSampler(nn.Module):
    """Windows that were drawn seldom or are predicted badly: c beta^uses + (loss + eps)^alpha (Kauvar et al. 2023).

    When to use: where what is rare matters, and a world model that is behind on it.
    """

    needs_losses = True

    def __init__(
        self,
        *,
        count_weight: Annotated[float, Option("c, the weight of a window never drawn", 0, 1e9)] = 1e4,
        count_decay: Annotated[float, Option("beta, by which it shrinks with every use", 0, 1)] = 0.7,
        loss_power: Annotated[float, Option("alpha, 0: the loss does not matter", 0, 10)] = 0.7,
        loss_offset: Annotated[float, Option("eps, which keeps a loss of 0 from being never drawn", 1e-9, 1e3)] = 0.01,
    ) -> None:
        super().__init__()
        self.count_weight, self.count_decay = count_weight, count_decay
        self.loss_power, self.loss_offset = loss_power, loss_offset

    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        """uses, loss: (W,) float32.  Returns (W,) float32."""
        known = loss.masked_fill(loss.isinf(), 0.0)
        return self.count_weight * self.count_decay**uses + (known + self.loss_offset) ** self.loss_power


@register("sampler", "worst_predicted")
class WorstPredictedSampler(nn.Module):
    """A share of the windows by softmax of their last loss, the others uniformly (Simulus, Cohen et al. 2025).

    When to use: as ``curious``, with a part of the batch left as the paper draws it. Where frames are noise by nature,
    noise is what it draws.
    """

    needs_losses = True

    def __init__(
        self,
        *,
        share: Annotated[float, Option("of the windows that is drawn by loss", 0, 1)] = 0.3,
        first_loss: Annotated[float, Option("of a window that was never drawn", 0, 1e6)] = 10.0,
    ) -> None:
        super().__init__()
        self.share, self.first_loss = share, first_loss

    def forward(self, uses: Tensor, loss: Tensor) -> Tensor:
        """uses, loss: (W,) float32.  Returns (W,) float32."""
        loss = loss.masked_fill(loss.isinf(), self.first_loss)
        return self.share * loss.softmax(0) + (1.0 - self.share) / len(loss)
