"""BatchNorm as the convolutional parts use it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that does not count its batches: the count is used without a fixed momentum only."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (M, C, Y, X).  Returns the same shape."""
        assert self.momentum is not None
        statistics = (self.running_mean, self.running_var)
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)
