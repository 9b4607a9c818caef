"""How well a world model learns what moves: trained alone on random play, for a number of this process's CPU seconds.

    OMP_NUM_THREADS=1 python benchmarks/moving_pixels.py upndown [KEY=VALUE ...] [--seconds 40 | --updates 500]

Prints mean squared errors, times 1e4, on 32 held-out windows of 16 steps: of frames decoded from the likeliest latents,
and of ten steps imagined after four of context. A pixel moves where, in some channel, it is more than a tenth of the
range away from the median of the training frames.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.data import WorldState
from stormlit.envs import VectorEnv
from stormlit.ops.losses import MOVES
from stormlit.runs.assembly import build_modules, player_factory
from stormlit.runs.device import make_fabric
from stormlit.storm.agent import ActorCritic
from stormlit.storm.collect import Collector
from stormlit.storm.learner import Learner
from stormlit.storm.replay import ReplayBuffer
from stormlit.storm.world_model import WorldModel

STEPS, HELD_OUT = 3400, 600
WINDOWS, LENGTH, CONTEXT, IMAGINED = 32, 16, 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--updates", type=int, default=10**9, help="end after so many, before the seconds are over")
    args = parser.parse_args()
    files, overrides = ([w for w in args.words if ("=" in w) == wanted] for wanted in (False, True))
    config = compose(files, overrides)
    torch.manual_seed(config.seed)
    envs = VectorEnv(config.env, seed=100)
    world_model, agent = build_modules(config, envs.obs_shape, envs.num_actions)
    replay = played(config, envs, world_model, agent, STEPS)
    held_out = played(config, envs, world_model, agent, HELD_OUT)
    learner = Learner(make_fabric(config), world_model, name="world_model", max_nonfinite=100)
    updates, start = 0, time.process_time()
    while updates < args.updates and time.process_time() - start < args.seconds:
        learner.update(replay.sample(config.loop.batch_size, config.loop.batch_length))
        updates += 1
    median = replay.storage.obs.flatten(0, 1).float().median(dim=0).values.permute(2, 0, 1) / 255.0
    for name, (everywhere, moving) in judged(world_model.eval(), held_out, median).items():
        print(f"{name:14} {updates:6,} updates   all {1e4 * everywhere:6.1f}   moving {1e4 * moving:6.1f}")


def played(config: Config, envs: VectorEnv, world_model: WorldModel, agent: ActorCritic, steps: int) -> ReplayBuffer:
    """A buffer full of random play.  steps: over all environments."""
    replay = ReplayBuffer(steps, envs.num_envs, envs.obs_shape, torch.device("cpu"), config.seed)
    collector = Collector(envs, player_factory(config, world_model, agent)(envs.num_envs), replay, seed=config.seed + 1)
    for _ in range(steps // envs.num_envs):
        collector.step(collector.select_action(random=True))
    return replay


@torch.no_grad()
def judged(world_model: WorldModel, replay: ReplayBuffer, median: Tensor) -> dict[str, tuple[float, float]]:
    """Errors over all pixels and over those that move, by what was predicted.  median: (C, Y, X) in [0, 1]."""
    batch = replay.sample(WINDOWS, LENGTH, torch.Generator().manual_seed(5))
    obs = batch.obs / 255.0
    posterior = world_model.posterior(batch.obs)
    likeliest = torch.zeros_like(posterior).scatter_(-1, posterior.argmax(-1, keepdim=True), 1.0).flatten(-2)
    context = batch.map(lambda x: x[:, :CONTEXT])
    state = world_model.start_imagination(context, LENGTH, from_posterior=False)
    latents = []
    for step in range(CONTEXT, CONTEXT + IMAGINED):
        assert isinstance(state, WorldState) and isinstance(state.latent, Tensor)
        latents.append(state.latent)
        state = world_model.step(state, batch.action[:, step])
    imagined = world_model.decode(torch.stack(latents, dim=1)).image
    return {
        "reconstructed": errors(world_model.decode(likeliest).image, obs, median),
        "imagined": errors(imagined, obs[:, CONTEXT : CONTEXT + IMAGINED], median),
        "median frame": errors(median.expand_as(obs), obs, median),
    }


def errors(predicted: Tensor, obs: Tensor, median: Tensor) -> tuple[float, float]:
    error = (predicted - obs).square().mean(dim=2)
    moves = ((obs - median).abs() > MOVES).any(dim=2)
    return float(error.mean()), float(error[moves].mean())


if __name__ == "__main__":
    main()
