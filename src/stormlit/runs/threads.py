"""How many threads a process computes with on the CPU: one for small work, its share of the cores for large."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stormlit.analysis.evaluate import random_devices
from stormlit.config.schema import Config
from stormlit.errors import counted
from stormlit.runs.estimate import noise
from stormlit.storm.agent import ActorCritic
from stormlit.storm.fabric_internals import copy_without_fabric
from stormlit.storm.imagination import Imagination
from stormlit.storm.replay import Windows
from stormlit.storm.world_model import WorldModel

GFLOP_A_THREAD = 8.0  # less gains nothing, and threads that wait for each other lose much beside a busy process
AT_START = torch.get_num_threads()  # what PyTorch makes of the machine: where it counts cores, not their hyperthreads
LIMIT = "OMP_NUM_THREADS"


def settle_threads(
    config: Config, device: torch.device, world_model: WorldModel, agent: ActorCritic, processes: int = 1
) -> Config:
    """Have PyTorch compute with the threads that a configuration asks for, at most ``most_threads``.

    processes: of the run.  Returns the configuration with the number that ``auto`` has become, to be kept with the run.
    On a GPU ``auto`` leaves PyTorch's own number.
    """
    if config.threads == "auto":
        if device.type != "cpu":
            return config
        most = min(most_threads(processes), max(AT_START // processes, 1))
        config = dataclasses.replace(config, threads=_chosen(config, most, world_model, agent, processes))
    torch.set_num_threads(min(int(config.threads), most_threads()))
    return config


def threads_for(gflop: float, most: int) -> int:
    """The rule: one thread for each ``GFLOP_A_THREAD``, at least one, at most ``most``.

    gflop: billions of floating-point operations in one update of the world model, one imagination and one update of the
    agent together.
    """
    return max(1, min(int(gflop / GFLOP_A_THREAD), most))


def most_threads(processes: int = 1) -> int:
    """The most threads for one of so many processes: its share of the cores, or fewer where OMP_NUM_THREADS says so."""
    share = max(cores() // processes, 1)
    limit = os.environ.get(LIMIT, "").partition(",")[0].strip()  # the first is for what is not nested
    return min(share, int(limit)) if limit.isdecimal() and int(limit) > 0 else share


def cores() -> int:
    """The processors that this process may use: those it is bound to, at most its container's share of time."""
    number = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        number = min(number, max(int(quota) // int(period), 1))
    return number


def told_threads(config: Config) -> list[str]:
    """A sentence where fewer threads compute than the configuration asks for, else nothing."""
    most = most_threads()
    if config.threads == "auto" or config.threads <= most:
        return []
    there = f"there {'is' if cores() == 1 else 'are'} {counted(cores(), 'core')}"
    why = f"{LIMIT} is {os.environ[LIMIT]}" if most < cores() else there
    return [f"threads={config.threads}: {why}, so that {most} {'computes' if most == 1 else 'compute'}"]


def gflop(config: Config, world_model: WorldModel, agent: ActorCritic) -> float:
    """Billions of floating-point operations in one update of the world model, one imagination and one update of the
    agent: matrix products, convolutions and attention, as PyTorch counts them on copies, in one row of noise.

    What trains is left as it is.
    """
    with torch.random.fork_rng(devices=random_devices()):
        parts = rehearsal(config, copy_without_fabric(world_model), copy_without_fabric(agent))
        return sum(_counted(function) * rows for function, rows in parts) / 1e9


def rehearsal(
    config: Config, world_model: WorldModel, agent: ActorCritic
) -> tuple[tuple[Callable[[], None], int], tuple[Callable[[], None], int]]:
    """The gradients of the world model, and those of the agent with the imagination before them: each a function that
    computes them for one row of noise, and the rows of an update.

    world_model, agent: copies, whose modes, statistics and gradients change.
    """
    extra = config.demonstrations if config.demonstrations.path is not None else None
    batch = Windows(config.loop.batch_size, extra.batch_size if extra else 0, config.loop.batch_length)
    imagined = config.imagination
    contexts = Windows(imagined.batch_size, extra.imagination_batch_size if extra else 0, imagined.context_length)

    def fit() -> None:
        world_model.train().losses(noise(world_model, batch, 1)).total.backward()

    def improve() -> None:
        rollouts = Imagination(world_model.eval(), agent.eval(), **dataclasses.asdict(imagined))
        trajectory = rollouts(noise(world_model, contexts, 1))
        agent.train().losses(trajectory).total.backward()

    return (fit, batch.total), (improve, contexts.total)


def _chosen(config: Config, most: int, world_model: WorldModel, agent: ActorCritic, processes: int) -> int:
    if most == 1:
        return 1
    try:
        return threads_for(gflop(config, world_model, agent) / processes, most)
    except Exception:  # of a part that cannot be copied or counted: as PyTorch would have it
        return most


def _counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()
