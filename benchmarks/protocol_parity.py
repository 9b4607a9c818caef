"""Parity: the same weights, inputs and forced samples on the CPU in float32 and on a device in each precision.

    python benchmarks/protocol_parity.py storm env.game=Pong --device cuda --json parity.json

Step ``parity`` of ``gpu_protocol.py``. Nothing is drawn: latents, actions and rollouts are given, dropout is off.
"""

from __future__ import annotations

import argparse
import copy
import sys
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.envs import VectorEnv
from stormlit.files import write_json
from stormlit.nn.latents import straight_through
from stormlit.runs.assembly import build_modules
from stormlit.storm.agent import ActorCritic
from stormlit.storm.world_model import WorldModel
from stormlit.types import Batch, Trajectory

NO_DROPOUT = "world_model.sequence_model.dropout=0.0"
Quantities = dict[str, Tensor]


class Subject:
    """Both modules with random weights, and inputs for them, on the CPU."""

    def __init__(self, config: Config, windows: int, length: int, rollouts: int) -> None:
        torch.manual_seed(config.seed)
        with closing(VectorEnv(config.env, seed=config.seed)) as envs:
            shape, actions = envs.obs_shape, envs.num_actions
        self.world_model, self.agent = build_modules(config, shape, actions)
        self.context, horizon = config.imagination.context_length, config.imagination.horizon
        frames = torch.randint(256, (windows, length, *shape), dtype=torch.uint8).permute(0, 1, 4, 2, 3)
        ends = torch.rand(windows, length) < 0.02
        self.batch = Batch(
            obs=frames,
            action=torch.randint(actions, (windows, length)),
            reward=torch.randn(windows, length) * 3,
            terminated=ends,
            is_first=ends.roll(1, dims=1),
        )
        self.forced = self._latents(windows, length)
        self.imagined = self._latents(rollouts, self.context + horizon)
        self.actions = torch.randint(actions, (rollouts, self.context + horizon))
        width = self.world_model.hidden_dim
        self.trajectory = Trajectory(
            latent=self._latents(rollouts, horizon + 1),
            hidden=torch.randn(rollouts, horizon + 1, width),
            action=torch.randint(actions, (rollouts, horizon)),
            reward=torch.randn(rollouts, horizon),
            continuation=torch.rand(rollouts, horizon),
            weight=torch.rand(rollouts, horizon),
        )

    def _latents(self, rows: int, length: int) -> Tensor:
        latent = self.world_model.latent
        drawn = torch.randint(latent.classes, (rows, length, latent.groups))
        return nn.functional.one_hot(drawn, latent.classes).flatten(-2).float()


def quantities(subject: Subject, device: torch.device, *, mixed: bool) -> Quantities:
    """Everything that is compared, in float32 on the CPU.  mixed: under bfloat16's autocast."""
    world_model, agent = (copy.deepcopy(module).to(device) for module in (subject.world_model, subject.agent))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
    with autocast, torch.no_grad():
        found = forward(subject, world_model.eval(), agent.eval(), device)
        found |= rollout(subject, world_model, device)
    found |= losses_and_gradients(subject, world_model.train(), agent.train(), device, autocast)
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def forward(subject: Subject, world_model: WorldModel, agent: ActorCritic, device: torch.device) -> Quantities:
    """Every network, in evaluation mode."""
    batch, latent = subject.batch.to(device), subject.forced.to(device)
    hidden = world_model.sequence_model(latent, batch.action, batch.is_first)
    return {
        "posterior": world_model.posterior(batch.obs),
        "hidden states": hidden,
        "prior": world_model.latent.prior(hidden),
        "predicted rewards": world_model.reward(hidden),
        "continuation": world_model.continuation(hidden),
        "reconstructions": world_model.decode(latent),
        "policy": agent.policy(latent, hidden),
        "values": agent.value(latent, hidden),
    }


def rollout(subject: Subject, world_model: WorldModel, device: torch.device) -> Quantities:
    """Hidden states along a rollout through the cache, each of them from those before it."""
    latent, action, context = subject.imagined.to(device), subject.actions.to(device), subject.context
    rows, length = action.shape
    none_first = torch.zeros(rows, context, dtype=torch.bool, device=device)
    model = world_model.sequence_model
    _, memory = model.prefill(latent[:, :context], action[:, :context], none_first, length)
    hidden = [model.step(latent[:, t], action[:, t], memory) for t in range(context, length)]
    return {"imagined hidden states": torch.stack(hidden, dim=1)}


def losses_and_gradients(
    subject: Subject, world_model: WorldModel, agent: ActorCritic, device: torch.device, autocast: torch.autocast
) -> Quantities:
    """Every term of both losses, and all gradients of each module as one vector."""
    forced = subject.forced.to(device).unflatten(-1, (world_model.latent.groups, -1))
    world_model.latent.sample = lambda log_probs: straight_through(forced, log_probs.exp()).flatten(-2)
    given = subject.trajectory
    trajectory = Trajectory(*(getattr(given, name).to(device) for name in Trajectory.__slots__))
    found: Quantities = {}
    for name, module, data in (("world model", world_model, subject.batch.to(device)), ("agent", agent, trajectory)):
        with autocast:
            losses = module.training_step(data)
        losses.total.backward()
        found |= {f"{name} loss: {term}": value for term, value in losses.terms.items()}
        gradients = [p.grad.flatten().float() for p in module.parameters() if p.grad is not None]
        found[f"{name} gradients"] = torch.cat(gradients)
        if name == "agent":
            found["return scale"] = losses.metrics["return_scale"]
    return found


def differences(reference: Quantities, other: Quantities) -> dict[str, dict[str, float]]:
    """Of each quantity the largest absolute difference, and that relative to the reference's largest number."""
    found = {}
    for name, expected in reference.items():
        absolute = (expected - other[name]).abs().max().item()
        found[name] = {"absolute": absolute, "relative": absolute / max(expected.abs().max().item(), 1e-12)}
    return found


def parity(subject: Subject, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """Differences from the CPU in float32, a table for each way to compute."""
    cpu = torch.device("cpu")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    reference = quantities(subject, cpu, mixed=False)
    found = {"fp32": differences(reference, quantities(subject, device, mixed=False))}
    if device.type == "cuda":
        # What precision=32-true is there: see make_fabric.
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        found["tf32"] = differences(reference, quantities(subject, device, mixed=False))
    found["bf16"] = differences(reference, quantities(subject, device, mixed=True))
    if device.type == "cuda":
        found["bf16 on the CPU"] = differences(reference, quantities(subject, cpu, mixed=True))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="CONFIG|KEY=VALUE")
    parser.add_argument("--device", required=True)
    parser.add_argument("--windows", type=int, default=4, help="of the world model (default 4)")
    parser.add_argument("--length", type=int, default=32, help="of a window in steps (default 32)")
    parser.add_argument("--rollouts", type=int, default=64, help="of the agent (default 64)")
    parser.add_argument("--json", type=Path, required=True)
    given = parser.parse_intermixed_args()
    overrides = [word for word in given.words if "=" in word]
    config = compose([word for word in given.words if "=" not in word], [*overrides, NO_DROPOUT])
    subject = Subject(config, given.windows, given.length, given.rollouts)
    write_json(given.json, parity(subject, torch.device(given.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
