"""World model and agent as LightningModules, which a Trainer can run too.

Apart from the modules themselves, so that reading their options does not take the seconds that Lightning takes to
import.
"""

from __future__ import annotations

import lightning as L
import torch

from stormlit.data import Batch, Losses, Trajectory
from stormlit.nn.optimizers import adam
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel


class LightningWorldModel(WorldModel, L.LightningModule):
    """``WorldModel`` under Lightning."""

    def training_step(self, batch: Batch, batch_idx: int = 0) -> Losses:  # type: ignore[override]
        """See ``WorldModel.losses``."""
        return self.losses(batch)

    def configure_optimizers(self, fused: bool = True) -> torch.optim.Adam:
        return adam(self.parameters(), self.optimizer_settings, fused=fused)


class LightningActorCritic(ActorCritic, L.LightningModule):
    """``ActorCritic`` under Lightning."""

    def training_step(self, trajectory: Trajectory, batch_idx: int = 0) -> Losses:  # type: ignore[override]
        """See ``ActorCritic.losses``."""
        return self.losses(trajectory)

    def configure_optimizers(self, fused: bool = True) -> torch.optim.Adam:
        return adam(self.parameters(), self.optimizer_settings, fused=fused)
