"""Normalisation as the convolutional parts use it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` without its count of batches, which is used without a fixed momentum only."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        assert self.momentum is not None
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place of a feature map, as in DreamerV3."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def training_memory_format(device: torch.device) -> torch.memory_format:
    """How feature maps, and the weights of convolutions, should lie in memory while BatchNorm takes statistics.

    Channels last is faster, and how frames are stored. But on the CPU PyTorch then sums over the batch one number after
    the other, and the more frames there are, the more digits float32 statistics lose. What autocast
    rounds away anyway is not worth the time: ask with autocast as it will be.
    """
    exact = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return torch.contiguous_format if exact else torch.channels_last
