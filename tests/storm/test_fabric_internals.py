"""What is used of Lightning's and PyTorch's insides is still there, in the releases that are named."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import lightning
import torch
from lightning import LightningModule
from lightning.fabric import Fabric
from torch import nn

import stormlit
from stormlit.storm import fabric_internals as internals

PRIVATE = {"_precision", "_fabric", "_fabric_optimizers", "found_inf", "_launched", "_strategy"}


def test_the_releases_are_those_it_holds_for() -> None:
    for version, known in ((lightning.__version__, internals.LIGHTNING), (torch.__version__, internals.TORCH)):
        assert ".".join(version.split(".")[:2]) in known, f"look through storm/fabric_internals.py for {version}"


def test_a_fused_step_is_skipped_on_the_device() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    flag = torch.tensor(0.0)
    internals.skip_steps_where(optimizer, flag)
    for skipped, moved in ((1.0, False), (0.0, True)):
        before = weight.detach().clone()
        weight.grad = torch.full_like(weight, float("nan") if skipped else 1.0)
        flag.fill_(skipped)
        optimizer.step()
        assert bool((weight != before).all()) is moved


class _Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).sum()


def test_a_copy_learns_apart_and_has_no_fabric_of_its_own() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    module = _Line()
    wrapped, _ = fabric.setup(module, torch.optim.Adam(module.parameters()))
    copied = internals.copy_without_fabric(module)
    copied.training_step(torch.ones(1, 2)).backward()
    assert copied.layer.weight.grad is not None and wrapped.module.layer.weight.grad is None
    plain = nn.Linear(2, 1)
    assert internals.copy_without_fabric(plain).weight is not plain.weight


def test_fabric_run_leaves_its_options_where_they_are_looked_for() -> None:
    import lightning.fabric.cli as cli
    import lightning.fabric.connector as connector

    run = internals.fabric_command().commands["run"]
    assert {"accelerator", "precision"} <= {parameter.name for parameter in run.params}
    assert '"LT_CLI_USED"] = "1"' in inspect.getsource(cli)
    assert "LT_CLI_USED" in inspect.getsource(connector) and '"LT_" + name.upper()' in inspect.getsource(connector)


def test_no_other_file_uses_a_private_name() -> None:
    room = Path(stormlit.__file__).parent
    mine = room / "storm/fabric_internals.py"
    for file in set(room.rglob("*.py")) - {mine}:
        used = {node.attr for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)}
        assert not used & PRIVATE, file
