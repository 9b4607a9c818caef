"""One-hot latents by the positions of their ones, and the layers that read them so.

A matrix product with one-hot groups adds G rows of the weight; written as such it is Z / G times less work, which
is what a CPU notices. (A GPU multiplies faster than it gathers, and gets the dense form.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.nn.autocast import compute_dtype


@dataclass(slots=True)
class SparseState:
    """What a head reads, [latent, dense], with the latent in sparse form.

    positions: (..., G) int64, where the latent's ones are among its Z numbers.  dense: (..., D), or None.
    """

    positions: Tensor
    dense: Tensor | None

    def __getitem__(self, index: Any) -> SparseState:
        """Index the leading dimensions of both."""
        return SparseState(self.positions[index], None if self.dense is None else self.dense[index])


class InputLinear(nn.Linear):
    """A linear layer whose input may be a latent, or begin with one, in sparse form.

    The weight is an ordinary (out, in) one, but stored input by input, so that the rows to add lie together.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.weight = nn.Parameter(self.weight.detach().t().contiguous().t())

    def forward(self, x: Tensor | SparseState) -> Tensor:
        """x: (..., in) floating point, (..., G) int64 positions of ones, or both.  Returns (..., out)."""
        if isinstance(x, SparseState):
            total = self._gather(x.positions)
            if x.dense is None:
                return total
            return total + F.linear(x.dense, self.weight[:, self.in_features - x.dense.shape[-1] :])
        return F.linear(x, self.weight, self.bias) if x.is_floating_point() else self._gather(x)

    def _gather(self, positions: Tensor) -> Tensor:
        rows = F.embedding_bag(positions.flatten(0, -2), self.weight.t(), mode="sum")
        if self.bias is not None:
            rows = rows + self.bias
        return rows.to(compute_dtype(self.weight)).unflatten(0, positions.shape[:-1])
