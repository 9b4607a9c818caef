"""What mixed precision computes in, and how feature maps then lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a matrix product with ``weight``: autocast's where it is on, else the weight's own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def full_precision(x: Tensor) -> torch.autocast:
    """A context in which products on the device of ``x`` are taken in their operands' own dtype."""
    return torch.autocast(x.device.type, enabled=False)


def training_memory_format(device: torch.device) -> torch.memory_format:
    """How feature maps, and the weights of convolutions, should lie in memory while BatchNorm takes statistics.

    Channels last is faster, and how frames are stored. But on the CPU PyTorch then sums over the batch one number after
    the other, and the more frames there are, the more digits float32 statistics lose. What autocast
    rounds away anyway is not worth the time: ask with autocast as it will be.
    """
    exact = device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return torch.contiguous_format if exact else torch.channels_last
