"""Half precision speeds up the networks; what is drawn, learned from and reported stays in float32."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor

from small import (
    ACTIONS,
    HIDDEN,
    bad_batch,
    bad_trajectory,
    imagine,
    random_batch,
    random_trajectory,
    small_agent,
    small_world_model,
    state_of,
)
from stormlit.config.compose import compose
from stormlit.data import Batch, Trajectory
from stormlit.ops.categorical import sample
from stormlit.ops.returns import lambda_returns
from stormlit.runs.device import make_fabric
from stormlit.storm.learner import Learner
from training import SMALL, differences, fabric_run


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def floats(data: Batch | Trajectory) -> dict[str, Tensor]:
    tensors = {name: getattr(data, name) for name in type(data).__slots__}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_what_is_learned_from_is_not_rounded(precision: str) -> None:
    fabric = make_fabric(compose(["tiny"], ["accelerator=cpu", f"precision={precision}"]))
    for data in (random_batch(), random_trajectory()):
        converted = fabric._precision.convert_input(data)
        assert floats(data)  # there is something to round
        for name, tensor in floats(data).items():
            assert floats(converted)[name].dtype == torch.float32
            assert torch.equal(floats(converted)[name], tensor)
    # While the networks do run in half precision.
    layer = torch.nn.Linear(2, 2)
    with fabric.autocast():
        assert (layer(torch.ones(2)).dtype == torch.bfloat16) == (precision == "bf16-mixed")


def test_everything_that_is_counted_with_is_in_float32() -> None:
    world_model = small_world_model()
    agent = small_agent(world_model)
    context = random_batch(rows=4, length=3)
    with torch.no_grad(), half():
        trajectory = imagine(world_model, agent, context, horizon=4, from_posterior=True)
        state = (trajectory.latent, trajectory.hidden)
        hidden = trajectory.hidden.bfloat16()
        seen = {
            "posterior": world_model.posterior(context.obs),
            "prior": world_model.latent.prior(hidden),
            "latent": world_model.sample_posterior(context.obs),
            "reward": world_model.reward(hidden),
            "continuation": world_model.continuation(hidden),
            "policy": agent.policy(*state),
            "value": agent.value(*state),
            "returns": agent._lambda_returns(trajectory, agent.value(*state)),
        }
        seen |= {f"imagined {name}": getattr(trajectory, name) for name in ("latent", "reward", "continuation")}
        seen["imagined weight"] = trajectory.weight
    assert {name: tensor.dtype for name, tensor in seen.items() if tensor.dtype != torch.float32} == {}
    assert hidden.shape == (4, 5, HIDDEN) and seen["policy"].shape == (4, 5, ACTIONS)
    assert torch.allclose(seen["policy"].exp().sum(dim=-1), torch.ones(4, 5), atol=1e-6)


def test_numbers_are_the_same_inside_autocast() -> None:
    """Given the same inputs; a matrix product with the two-hot bins would be off by 1%."""
    torch.manual_seed(1)
    encoding = small_agent(value_bins=255, value_low=-20.0, value_high=20.0).value_encoding
    logits, targets, trajectory = 3 * torch.randn(64, 255), 100 * torch.randn(64), random_trajectory()
    log_probs = torch.randn(64, 32).log_softmax(dim=-1)

    def numbers() -> list[Tensor]:
        torch.manual_seed(0)
        values = trajectory.latent[..., 0]
        returns = lambda_returns(trajectory.reward, values, 0.99 * trajectory.continuation, 0.95, "next")
        return [encoding.decode(logits), encoding.loss(logits, targets), returns, sample(log_probs)]

    exact = numbers()
    with half():
        for number, expected in zip(numbers(), exact, strict=True):
            assert number.dtype == expected.dtype and torch.equal(number, expected)
        # Logits of a half-precision head are read as the numbers they are.
        assert torch.equal(encoding.decode(logits.bfloat16()), encoding.decode(logits.bfloat16().float()))


@pytest.mark.parametrize("of", ["world_model", "agent"])
def test_a_skipped_step_does_not_confuse_the_loss_scaler(of: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    module = small_world_model() if of == "world_model" else small_agent()
    learner = Learner(fabric, module, name=of, max_nonfinite=2)
    good: Batch | Trajectory = random_batch() if of == "world_model" else random_trajectory()

    def take_a_good_step() -> None:
        before = state_of(module)
        done = learner.update(good)
        assert done.finite and 0.0 < float(done.metrics["gradient_norm"]) < 1000.0  # of unscaled gradients
        assert list(differences(before, state_of(module)))
        assert all(tensor.isfinite().all() for tensor in state_of(module).values())

    take_a_good_step()
    before, optimiser = state_of(module), copy.deepcopy(learner.optimizer.state_dict())
    for bad in range(2):
        done = learner.update(bad_batch() if of == "world_model" else bad_trajectory())
        assert not done.finite and learner.in_a_row == bad + 1
        assert list(differences(before, state_of(module))) == []
        assert list(differences(optimiser, learner.optimizer.state_dict())) == []
    assert all(parameter.grad is None for parameter in module.parameters())
    take_a_good_step()
    assert learner.in_a_row == 0
    assert math.isfinite(scaler.get_scale()) and scaler.get_scale() > 0.0


RECORDING = """
import atexit, json, os, sys
import torch
from stormlit.cli import main
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel

seen = set()
for cls in (WorldModel, ActorCritic):
    def losses(self, data, losses=cls.losses, name=cls.__name__):
        found = losses(self, data)
        seen.update(f"{name} {tensor.dtype}" for tensor in (data.reward, *found.terms.values()))
        return found
    cls.losses = losses

def write():
    # Asked for first, it is called last: after what stormlit does at the end.
    with open(f"{sys.argv[1]}/seen-{os.environ['LOCAL_RANK']}.json", "w") as file:
        json.dump([*sorted(seen), torch.distributed.is_initialized()], file)

atexit.register(write)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_two_processes_learn_from_unrounded_rewards(tmp_path: Path) -> None:
    script = tmp_path / "recording.py"
    script.write_text(RECORDING)
    words = [*SMALL, "loop.env_steps=20", "loop.warmup_steps=16", f"run.dir={tmp_path}", "run.name=run"]
    options = ("--strategy", "ddp", "--precision", "bf16-mixed")
    ended = fabric_run(2, [str(tmp_path), "train", *words], *options, script=script)
    assert ended.returncode == 0, ended.stderr
    assert "bf16-mixed, 2 processes" in ended.stderr
    for process in (0, 1):
        # A process group left open has threads that now and then abort the interpreter as it ends.
        seen = json.loads((tmp_path / f"seen-{process}.json").read_text())
        assert seen == ["ActorCritic torch.float32", "WorldModel torch.float32", False]
