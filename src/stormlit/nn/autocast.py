"""What mixed precision computes in."""

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
