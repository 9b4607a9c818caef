"""What policy and critic see of the world model's state, and the small networks that read a state: reward,
continuation, policy and value."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from stormlit.ops.twohot import (
    hl_gauss_loss,
    symexp,
    symexp_bins,
    symexp_twohot_decode,
    symexp_twohot_loss,
    symlog,
    symlog_bins,
    twohot_decode,
    twohot_loss,
)
from stormlit.registry import Option, register


@register("agent_state", "latent")
class LatentState(nn.Module):
    """The current frame's latent z alone.

    latent_dim: Z.  hidden_dim: D.

    When to use: where a single frame shows all that counts, or to ask what the memory adds. The sequence model then
    only serves the dreams.
    """

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).  Returns (..., F)."""
        return latent


@register("agent_state", "hidden")
class HiddenState(nn.Module):
    """The memory h of everything before the current frame, alone.

    latent_dim: Z.  hidden_dim: D.

    When to use: to ask what the memory alone is worth. Such an agent acts before it has seen the frame.
    """

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = hidden_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).  Returns (..., F)."""
        return hidden


@register("agent_state", "both")
class LatentAndHiddenState(nn.Module):
    """[z, h], as in the paper.

    latent_dim: Z.  hidden_dim: D.

    When to use: the default. The agent sees the current frame and what came before it.
    """

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.state_dim = latent_dim + hidden_dim

    def forward(self, latent: Tensor, hidden: Tensor) -> Tensor:
        """latent: (..., Z).  hidden: (..., D).  Returns (..., F)."""
        return torch.cat([latent, hidden.to(latent.dtype)], dim=-1)


@register("head", "mlp")
class MLPHead(nn.Module):
    """``num_layers`` times Linear - LayerNorm - ReLU, then a linear output.

    in_dim, out_dim: widths.  hidden_dim: width of the hidden layers.

    When to use: it is the only one bundled.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int,
        *,
        num_layers: Annotated[int, Option("hidden layers", low=0)] = 2,
        zero_output: Annotated[
            bool,
            Option("start the last layer at zero: first predictions are uniform or 0; the paper's are not"),
        ] = False,
    ) -> None:
        super().__init__()
        widths = [in_dim] + [hidden_dim] * num_layers
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False), nn.LayerNorm(fan_out), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], out_dim)
        if zero_output:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_dim).  Returns (..., out_dim)."""
        return self.output(self.hidden(x))


class TwoHot(nn.Module):
    """Reads logits over symlog bins as a number, and scores them against one.

    count: number of bins K.  low, high: first and last bin, in symlog space.
    """

    bins: Tensor

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__()
        self.outputs = count
        self.register_buffer("bins", symlog_bins(count, low, high), persistent=False)

    def decode(self, logits: Tensor) -> Tensor:
        """logits: (..., K).  Returns (...,) float32."""
        return twohot_decode(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits: (..., K).  target: (...,).  Returns the cross-entropy (...,) float32."""
        return twohot_loss(logits, target, self.bins)


class HLGauss(TwoHot):
    """The same bins, scored against a normal around the target in place of its two neighbours."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits: (..., K).  target: (...,).  Returns the cross-entropy (...,) float32."""
        return hl_gauss_loss(logits, target, self.bins)


class SymexpTwoHot(TwoHot):
    """Bins spread by symexp, between which numbers are encoded and averaged as they are (Hafner et al. 2025)."""

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__(count, low, high)
        self.register_buffer("bins", symexp_bins(count, low, high), persistent=False)

    def decode(self, logits: Tensor) -> Tensor:
        """logits: (..., K).  Returns (...,) float32."""
        return symexp_twohot_decode(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits: (..., K).  target: (...,).  Returns the cross-entropy (...,) float32."""
        return symexp_twohot_loss(logits, target, self.bins)


class SquaredSymlog(nn.Module):
    """Reads one output as a number's symlog, and scores it by half the squared error (DreamerV3, equation 1).

    count, low, high: of bins, which it has none of.
    """

    outputs = 1

    def __init__(self, count: int, low: float, high: float) -> None:
        super().__init__()

    def decode(self, output: Tensor) -> Tensor:
        """output: (..., 1).  Returns (...,) float32."""
        return symexp(output.squeeze(-1).float())

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """output: (..., 1).  target: (...,).  Returns (...,) float32."""
        return 0.5 * (output.squeeze(-1).float() - symlog(target.float())).square()


Scoring = Literal["twohot", "hl_gauss", "symexp_twohot", "squared"]
READINGS: dict[Scoring, type[TwoHot] | type[SquaredSymlog]] = {
    "twohot": TwoHot,
    "hl_gauss": HLGauss,
    "symexp_twohot": SymexpTwoHot,
    "squared": SquaredSymlog,
}
"""How a head's outputs are read as a number, by the word for it."""
