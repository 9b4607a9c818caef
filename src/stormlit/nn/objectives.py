"""Terms that may be added to the world model's loss."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stormlit.data import Losses, Reading
from stormlit.nn.autocast import full_precision
from stormlit.registry import Option, register


@register("objective", "contrastive")
class ContrastivePrediction(nn.Module):
    """The hidden state finds the next frame's embedding among all of the batch (CPC, van den Oord et al. 2018).

    TWISTER (Burchi and Timofte 2025) has such a term in a world model of STORM's kind. The hidden state has read the
    action, so that it is the action's outcome that is predicted.
    latent_dim: Z.  embed_dim: E.  hidden_dim: D.  num_actions: A.

    When to use: where the decoder spends itself on what does not matter: what tells one frame from another must be
    predicted, however few pixels it has.
    """

    def __init__(
        self,
        latent_dim: int,
        embed_dim: int,
        hidden_dim: int,
        num_actions: int,
        *,
        width: Annotated[int, Option("numbers that are compared", low=1)] = 256,
        scale: Annotated[float, Option("weight of the term", 0, 1e6)] = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.query = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, width)
        )
        self.key = nn.Linear(embed_dim, width)

    def forward(self, reading: Reading) -> Losses:
        """The term ``contrastive``, InfoNCE in nats over the steps that another one of their episode follows."""
        query = self.query(reading.hidden[:, :-1]).float().flatten(0, 1)
        key = self.key(reading.embed[:, 1:]).float().flatten(0, 1)
        error, found = info_nce(query, key)
        follows = (~reading.batch.is_first[:, 1:]).flatten()
        weight = follows / follows.sum().clamp(min=1)
        return Losses(
            {"contrastive": (error * weight).sum()},
            {"contrastive": self.scale},
            {"contrastive_accuracy": (found * weight).sum()},
        )


def info_nce(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """How well each query finds the key of its own row among all M, by dot products over the root of their width.

    query, key: (M, W) float32.  Returns nats (M,), and 1 where the own key is the best one (M,), both float32.
    """
    with full_precision(query):
        logits = query @ key.t() / query.shape[-1] ** 0.5
    own = torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, own, reduction="none"), (logits.detach().argmax(dim=-1) == own).float()
