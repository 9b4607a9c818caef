"""BatchNorm as the convolutional parts use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with exact statistics in any memory order, and without its count of batches.

    With channels last, which is how frames are stored and convolutions are fastest, PyTorch sums over the batch one
    number after the other on the CPU: in float32 its statistics are off by 1e-5 for hundreds of frames, by 1e-4 for
    thousands. The count of batches is used without a fixed momentum only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        if self.training and channels_last and x.device.type == "cpu" and x.dtype == torch.float32:
            return _ChannelsLast.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps
            )
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


@torch.library.custom_op("stormlit::batch_norm_channels_last", mutates_args=("running_mean", "running_var"))
def _channels_last(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training's BatchNorm of x (M, C, Y, X), channels last.  Returns the same shape, mean and 1 / std (C,) each."""
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)
    count = rows.shape[0] * rows.shape[1]
    # Image by image, then over the images: short sums are exact.
    mean = rows.sum(1).sum(0) / count
    variance = (rows - mean).square_().sum(1).sum(0) / count
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)
    normalized = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    return normalized, mean, torch.rsqrt(variance + eps)


@_channels_last.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(running_mean), torch.empty_like(running_var)


class _ChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *others: Any) -> Tensor:
        normalized, mean, inverse_std = _channels_last(x, weight, *others)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = others[-1]
        return normalized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        wanted = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
        )
        return *wanted, None, None, None, None
