"""All that is used of Lightning's and PyTorch's insides, where they have no public name for it.

It holds for ``LIGHTNING`` and ``TORCH``; tests/storm/test_fabric_internals.py fails for a release that is not tried.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    import click
    from lightning.fabric import Fabric

LIGHTNING = ("2.6",)
TORCH = ("2.11", "2.12", "2.13")

Module = TypeVar("Module", bound=nn.Module)


def skip_steps_where(optimizer: Optimizer, skipped: Tensor) -> None:
    """Have every step of a fused Adam change nothing while the flag ``skipped``, on the device, is 1.

    optimizer: PyTorch's own, without Fabric's wrapper.
    """
    optimizer.found_inf = skipped  # type: ignore[attr-defined]


def scales_loss(fabric: Fabric) -> bool:
    """Whether the loss is scaled before the backward pass, as float16 needs."""
    return getattr(fabric._precision, "scaler", None) is not None


def precision_state(fabric: Fabric) -> dict[str, Any]:
    """The loss scaler's state, for a checkpoint; empty where there is none."""
    return fabric._precision.state_dict()


def load_precision_state(fabric: Fabric, state: dict[str, Any]) -> None:
    """Put back what ``precision_state`` gave."""
    fabric._precision.load_state_dict(state)


def copy_without_fabric(module: Module) -> Module:
    """A copy that can take a backward pass; Fabric and the optimisers it hangs on a LightningModule are not copied."""
    kept: dict[int, Any] = {}
    if hasattr(module, "_fabric"):
        kept = {id(module._fabric): module._fabric, id(module._fabric_optimizers): []}
    return copy.deepcopy(module, kept)


def launched_by_fabric() -> bool:
    """Whether ``fabric run`` started this process."""
    return os.environ.get("LT_CLI_USED") == "1"


def given_to_fabric_run(option: str) -> str | None:
    """The value that ``fabric run --OPTION`` was given; None for none, and where it did not start this process."""
    return os.environ.get(f"LT_{option.upper()}") if launched_by_fabric() else None


def fabric_command() -> click.Group:
    """What the console script ``fabric`` calls."""
    from lightning.fabric.cli import _main

    return _main
