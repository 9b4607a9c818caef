"""A run tries parts of somebody else's, on what it sees and does itself."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from small import small_world_model
from stormlit.data import Losses, Reading
from stormlit.spaces import ActionSpace, ObservationSpace

SEEN = ObservationSpace.of((16, 16, 3))


class Inverse(nn.Module):
    """Foretells the action from the hidden state, and tells what it was given."""

    given: tuple[torch.Size, torch.Size] | None = None

    def __init__(self, latent_dim: int, embed_dim: int, hidden_dim: int, num_actions: int) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden_dim, num_actions)

    def forward(self, reading: Reading) -> Losses:
        Inverse.given = reading.batch.obs.shape[2:], reading.batch.action.shape[2:]
        error: Tensor = (self.layer(reading.hidden) - reading.batch.action).square().mean()
        return Losses({"inverse": error}, {"inverse": 1.0}, {})


def test_an_objective_is_tried_on_the_runs_own_observations_and_actions() -> None:
    small_world_model(observations=SEEN, actions=ActionSpace.box(2), objectives=[{"name": f"{__name__}:Inverse"}])
    assert Inverse.given == ((3, 16, 16), (2,))


def test_bundled_parts_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stormlit.checks.trials", None)  # whoever imports it gets an ImportError
    small_world_model(objectives=[{"name": "contrastive"}])
    with pytest.raises(ImportError):
        small_world_model(objectives=[{"name": f"{__name__}:Inverse"}])
