"""Networks whose weights do not move for a while, made faster for as long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Forward = Callable[[Tensor], Tensor]


@runtime_checkable
class Freezable(Protocol):
    """A part that has a faster equal of itself in evaluation mode, for the weights as they are now."""

    def frozen(self) -> Forward:
        """A function of the input that equals the module's ``forward`` in evaluation mode, without gradients."""
        ...


def frozen(module: nn.Module) -> Forward:
    """The module's own faster equal if it has one and is in evaluation mode, else the module."""
    return module.frozen() if isinstance(module, Freezable) and not module.training else module


@torch.no_grad()
def fold_batch_norms(layers: nn.Sequential) -> Forward:
    """The layers in evaluation mode, each BatchNorm that follows a convolution multiplied into its weights."""
    steps: list[Forward] = []
    previous: nn.Module | None = None
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            steps[-1] = _fold(previous, layer)
        else:
            steps.append(frozen(layer))
        previous = layer

    def forward(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return forward


def _fold(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> Forward:
    """w x + b, then (y - mean) / sqrt(var + eps) * scale + shift, as one convolution."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    start = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
    weight, bias = layer.weight * factor.view(-1, 1, 1, 1), norm.bias - start * factor
    return lambda x: F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
