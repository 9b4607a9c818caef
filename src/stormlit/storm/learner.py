"""One optimiser step, the same for the world model and for the agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stormlit.data import Losses
from stormlit.errors import TrainingError
from stormlit.nn.autocast import training_memory_format
from stormlit.nn.compilation import Compiled
from stormlit.nn.optimizers import adam
from stormlit.storm.agent import ActorCritic
from stormlit.storm.fabric_internals import scales_loss, skip_steps_where
from stormlit.storm.world_model import WorldModel

if TYPE_CHECKING:
    from lightning.fabric import Fabric
    from lightning.fabric.wrappers import _FabricModule, _FabricOptimizer


@dataclass(slots=True)
class Update:
    """What one step did, all of it on the device.

    metrics: detached scalars.  finite: bool scalar, False where the loss or its gradient was not finite, so that
    weights, optimiser and running statistics are what they were and the metrics mean nothing.
    windows: (B,) detached, see ``Losses``.
    """

    metrics: dict[str, Tensor]
    finite: Tensor
    windows: Tensor | None = None


class Learner:
    """A module with its optimiser: loss, backward, clip, step. A step that is not finite is skipped.

    Whether it is, the device decides and remembers: ``update`` never waits for it, ``check`` does.

    name: the prefix of its metrics.  max_nonfinite: skipped steps in a row after which ``check`` raises.
    compile: compute losses and their derivatives by a compiled function.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: WorldModel | ActorCritic,
        *,
        name: str,
        max_nonfinite: int,
        compile: bool = False,
    ) -> None:
        self.fabric, self.name, self.max_nonfinite = fabric, name, max_nonfinite
        self.settings = module.optimizer_settings
        # With float16 the loss scale is divided out before clipping, which Adam's fused kernel would do inside.
        self.scales_loss = scales_loss(fabric)
        optimizer = adam(module.parameters(), self.settings, fused=not self.scales_loss)
        with fabric.autocast():
            # Or each use of a convolution's weight, and each of its gradients, would begin with a copy.
            module.to(memory_format=training_memory_format(fabric.device))  # type: ignore[call-overload]
        self.module: _FabricModule
        self.optimizer: _FabricOptimizer
        self.module, self.optimizer = fabric.setup(module, optimizer)
        # With several processes the wrapped module's own is needed, which exchanges gradients.
        self.module.mark_forward_method("losses")
        self.loss_fn: Callable[[Any], Losses] = self.module.losses
        if compile:
            self.loss_fn = Compiled(module.losses, f"the {name}'s update", fabric.device)
        # Running statistics and return scales, which move in the forward pass.
        self._moving = [buffer for buffer in module.buffers() if buffer.dtype in (torch.float32, torch.bool)]
        self.skips = torch.zeros((), device=fabric.device)
        if not self.scales_loss:  # the loss scaler finds out and skips by itself
            skip_steps_where(self.optimizer.optimizer, self.skips)
        # Steps skipped: in a row until now, the most there were in a row, and all there were.
        self.in_a_row, self.longest, self.total_skipped = torch.zeros(3, 1, device=fabric.device).unbind()

    def update(self, batch: Any, done: float = 0.0) -> Update:
        """Take one step on a ``Batch`` or ``Trajectory``; no host sync, but the loss scaler's own with float16.

        done: share of the run that is over, on which the step size may depend; 1 at the end of the budget.
        """
        if self.settings.decay:
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * self.settings.decayed(done)
        self.module.train()
        before = self._statistics()
        try:
            losses, total = self._differentiate(batch)
        except Exception as error:  # a GPU compiles and records the backward pass apart, when it first comes
            self.optimizer.zero_grad(set_to_none=True)
            if before is not None:  # half a step leaves no trace
                self._set_statistics(before)
            if not (isinstance(self.loss_fn, Compiled) and self.loss_fn.give_up(error)):
                self.module.eval()
                raise
            losses, total = self._differentiate(batch)
        metrics = losses.log(total)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.settings.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        either = total.detach() + norm
        finite = (either - either) == 0.0  # half as many operations as torch.isfinite
        if self.fabric.world_size > 1:
            everywhere = finite.float()
            # Fabric's own all_reduce begins with a barrier, which makes the host wait.
            torch.distributed.all_reduce(everywhere, op=torch.distributed.ReduceOp.MIN)
            finite = everywhere == 1.0
        skipped = self.skips.copy_(~finite)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            self._restore_unless(finite, before)
        self.module.eval()
        self.in_a_row.add_(1).mul_(skipped)
        torch.maximum(self.longest, self.in_a_row, out=self.longest)
        self.total_skipped.add_(skipped)
        return Update({**metrics, "gradient_norm": norm}, finite, losses.windows)

    def _differentiate(self, batch: Any) -> tuple[Losses, Tensor]:
        """Losses and their total, whose gradients are then the parameters' ``grad``."""
        with self.fabric.autocast():
            losses = self.loss_fn(batch)
        total = losses.total
        self.fabric.backward(total)
        return losses, total

    @property
    def skipped(self) -> int:
        """Steps skipped since the beginning. Waits for the device."""
        return int(self.total_skipped)

    def check(self) -> None:
        """Raise ``TrainingError`` if too many steps in a row have been skipped. Waits for the device."""
        longest = int(self.longest)
        if longest > self.max_nonfinite:
            raise TrainingError(
                f"the loss of the {self.name} was not finite {longest} times in a row "
                f"(loop.max_nonfinite_updates={self.max_nonfinite}): lower "
                f"{self.name}.optimizer.learning_rate or use precision=32-true; the last checkpoint is kept"
            )

    def _statistics(self) -> Tensor | None:
        """What moves in the forward pass as one vector, since one copy is launched faster than many."""
        return torch.cat([buffer.flatten() for buffer in self._moving]) if self._moving else None

    def _restore_unless(self, finite: Tensor, before: Tensor) -> None:
        after = self._statistics()
        assert after is not None
        statistics = torch.where(finite, after, before)
        if self.fabric.world_size > 1:
            # Rank 0's are broadcast; otherwise ranks diverge until the next resume.
            torch.distributed.broadcast(statistics, src=0)
        self._set_statistics(statistics)

    def _set_statistics(self, statistics: Tensor) -> None:
        parts = statistics.split([buffer.numel() for buffer in self._moving])
        torch._foreach_copy_(self._moving, [p.view_as(b) for p, b in zip(parts, self._moving, strict=True)])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "skipped": torch.cat([self.in_a_row, self.longest, self.total_skipped]).tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Moments are restored; learning rate and the like are the configuration's, which may have changed.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        # The fused kernel takes for granted that moments lie in memory as their weights do.
        for weight, entry in self.optimizer.optimizer.state.items():
            for name in ("exp_avg", "exp_avg_sq"):
                entry[name] = torch.empty_like(weight, requires_grad=False).copy_(entry[name])
        for count, restored in zip((self.in_a_row, self.longest, self.total_skipped), state["skipped"], strict=True):
            count.fill_(restored)
