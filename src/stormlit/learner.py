"""One optimiser step, the same for the world model and for the agent."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor

from stormlit.agent import ActorCritic
from stormlit.errors import TrainingError
from stormlit.types import Losses
from stormlit.world_model import WorldModel


class Learner:
    """A module with its optimiser: loss, backward, clip, step. A step whose loss is not finite is skipped.

    name: the prefix of its metrics.  max_nonfinite: skipped steps in a row after which ``TrainingError`` is raised.
    """

    def __init__(self, fabric: Fabric, module: WorldModel | ActorCritic, *, name: str, max_nonfinite: int) -> None:
        self.fabric, self.name, self.max_nonfinite = fabric, name, max_nonfinite
        self.clip_norm = module.optimizer_settings.clip_norm
        # With float16 the loss scale is divided out before clipping, which Adam's fused kernel would do inside.
        self.scaler = getattr(fabric._precision, "scaler", None)
        optimizer = module.configure_optimizers(fused=self.scaler is None)
        self.module: _FabricModule
        self.optimizer: _FabricOptimizer
        self.module, self.optimizer = fabric.setup(module, optimizer)
        self.nonfinite_in_a_row = 0

    def update(self, batch: Any) -> dict[str, Tensor]:
        """Take one step on a ``Batch`` or ``Trajectory``.  Returns detached metrics; ``skipped`` is 1 or 0."""
        self.module.train()
        # Running statistics and return scales move in the forward pass, and a skipped step must leave no trace.
        buffers = [buffer.clone() for buffer in self.module.buffers()]
        with self.fabric.autocast():
            losses: Losses = self.module.training_step(batch)
        total = losses.total
        self.fabric.backward(total)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        # The loss scaler copes with infinite gradients by itself, and needs to see them.
        finite = torch.isfinite(total.detach() if self.scaler is not None else total.detach() + norm)
        skipped = not self._on_all_processes(finite)
        if skipped:
            torch._foreach_copy_(list(self.module.buffers()), buffers)
            if self.scaler is not None:
                self.scaler.update()  # or it would refuse to unscale this optimiser's next gradients
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.module.eval()
        self._count(skipped)
        if skipped:
            return {"skipped": torch.ones(())}
        return {**losses.log(), "gradient_norm": norm, "skipped": torch.zeros(())}

    def _on_all_processes(self, finite: Tensor) -> bool:
        if self.fabric.world_size > 1:
            finite = self.fabric.all_reduce(finite.float(), reduce_op="mean") == 1.0  # type: ignore[assignment]
        return bool(finite)

    def _count(self, skipped: bool) -> None:
        self.nonfinite_in_a_row = self.nonfinite_in_a_row + 1 if skipped else 0
        if self.nonfinite_in_a_row > self.max_nonfinite:
            raise TrainingError(
                f"the loss of the {self.name} was not finite {self.nonfinite_in_a_row} times in a row "
                f"(loop.max_nonfinite_updates={self.max_nonfinite}): lower "
                f"{self.name}.optimizer.learning_rate or use precision=32-true; the last checkpoint is kept"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "nonfinite_in_a_row": self.nonfinite_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Moments are restored; learning rate and the like are the configuration's, which may have changed.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]
