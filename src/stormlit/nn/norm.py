"""BatchNorm as the convolutional parts use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PART = 2**18  # numbers of a feature map that are worked on while they are in a processor's cache


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` without its count of batches, and exact in float32 whatever the memory order.

    Feature maps lie in memory with channels last, which is faster. But on a CPU PyTorch then adds the numbers of a
    channel one after the other, and what this rounds away in statistics and their gradients, convolutions whose large
    terms cancel make larger. Such maps are normalised here, with sums in a tree. (What autocast rounds anyway is not.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        assert self.momentum is not None
        if not (self.training and adds_in_a_row(x)):
            statistics = (self.running_mean, self.running_var)
            return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
        out, mean, variance = _ChannelsLastBatchNorm.apply(x, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None
        count = x.numel() // x.shape[1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return out


def adds_in_a_row(x: Tensor) -> bool:
    """Whether PyTorch would take the statistics of this batch of feature maps by adding one number after the other."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


class _ChannelsLastBatchNorm(torch.autograd.Function):
    """Ioffe and Szegedy (2015), algorithm 1 and the gradients that follow it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        pixels = _pixels(x)
        count = pixels.shape[0] * pixels.shape[1]
        mean = _sum(pixels) / count
        squares = torch.stack([_sum((part - mean).square_()) for (part,) in _parts(pixels)])
        variance = squares.sum(0) / count
        deviation = torch.rsqrt(variance + eps)
        scale = weight * deviation
        out = torch.empty_like(x)
        torch.addcmul(bias - mean * scale, pixels, scale, out=_pixels(out))
        ctx.save_for_backward(x, weight, mean, deviation)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, deviation = ctx.saved_tensors
        pixels = _pixels(x)
        gradient = _pixels(gradients[0].contiguous(memory_format=torch.channels_last))
        count = pixels.shape[0] * pixels.shape[1]
        # Of the bias, and of the deviation from the mean before it is scaled.
        total, along = torch.zeros_like(mean), torch.zeros_like(mean)
        for part, above in _parts(pixels, gradient):
            total += _sum(above)
            along += _sum((part - mean).mul_(above))
        scale = weight * deviation
        slope, shift = -scale * deviation.square() * along / count, -scale * total / count
        out = torch.empty_like(x)
        for part, above, below in _parts(pixels, gradient, _pixels(out)):
            torch.sub(part, mean, out=below).mul_(slope).add_(shift).addcmul_(above, scale)
        return out, along * deviation, total, None


def _pixels(x: Tensor) -> Tensor:
    """(M, C, Y, X) with channels last as (M, Y * X, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _parts(*pixels: Tensor) -> Iterator[tuple[Tensor, ...]]:
    rows = max(1, PART // pixels[0][0].numel())
    return zip(*(each.split(rows) for each in pixels), strict=True)


def _sum(pixels: Tensor) -> Tensor:
    """(M, P, C) to (C,).  In two steps, which PyTorch takes with many threads."""
    return pixels.sum(1).sum(0)
