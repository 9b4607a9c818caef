"""What a training will take, before it begins: memory, and, found on a rehearsal, time and threads.

A process computes on the CPU with one thread for small work, and with its share of the cores for large.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from stormlit.analysis.evaluate import random_devices
from stormlit.config.schema import Config
from stormlit.data import Batch
from stormlit.errors import ConfigError, counted
from stormlit.ops.spaces import channels_first
from stormlit.storm.agent import ActorCritic
from stormlit.storm.fabric_internals import copy_without_fabric
from stormlit.storm.imagination import Imagination
from stormlit.storm.replay import Windows
from stormlit.storm.training import Training
from stormlit.storm.world_model import WorldModel

FLOAT = 4  # bytes
REHEARSED_FRAMES = 128
LONG = 3600.0  # seconds from which on a smaller configuration is worth a word
GFLOP_A_THREAD = 8.0  # less gains nothing, and threads that wait for each other lose much beside a busy process
AT_START = torch.get_num_threads()  # what PyTorch makes of the machine: where it counts cores, not their hyperthreads
LIMIT = "OMP_NUM_THREADS"


def check_memory(config: Config, training: Training) -> None:
    """Raise ``ConfigError`` for what cannot fit: the frames of one update, or the latents of one imagination, alone
    take more than the device has. Activations come on top, so what passes may still be too much.
    """
    device = training.fabric.device
    available = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else physical_memory()
    pixels = training.world_model.observation_space.nbytes
    batch, contexts = training.experience.batch, training.experience.contexts
    steps = contexts.length + config.imagination.horizon
    for key, needed in (
        # The frames, their reconstruction and its gradient.
        (f"loop.batch_size={config.loop.batch_size}", 3 * batch.total * batch.length * pixels * FLOAT),
        (
            f"imagination.batch_size={config.imagination.batch_size}",
            contexts.total * (contexts.length * pixels + steps * training.world_model.hidden_dim * FLOAT),
        ),
    ):
        if needed > available:
            raise ConfigError(
                f"{key} needs at least {_gib(needed)} of memory for each update, and {device} has {_gib(available)}: "
                "lower it, or the length of its windows"
            )


def physical_memory() -> int:
    """The machine's memory in bytes, or the container's share of it."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        return min(machine, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine


def rehearsal(
    config: Config, world_model: WorldModel, agent: ActorCritic, frames: int = 1
) -> tuple[tuple[Callable[[], None], float], tuple[Callable[[], None], float]]:
    """The gradients of the world model, and those of the agent with the imagination before them: each a function that
    computes them for some rows of noise, of so many frames together, and how often that makes an update.

    world_model, agent: copies, whose modes, statistics and gradients change.
    """
    agent.return_normalizer.gathers = False  # one process rehearses, and the others do not
    extra = config.demonstrations if config.demonstrations.path is not None else None
    imagined = config.imagination
    batch = Windows(config.loop.batch_size, extra.batch_size if extra else 0, config.loop.batch_length)
    contexts = Windows(imagined.batch_size, extra.imagination_batch_size if extra else 0, imagined.context_length)
    seen, begun = (_noise(world_model, windows, max(frames // windows.length, 1)) for windows in (batch, contexts))

    def fit() -> None:
        world_model.train().losses(seen).total.backward()

    def improve() -> None:
        rollouts = Imagination(world_model.eval(), agent.eval(), **dataclasses.asdict(imagined))
        trajectory = rollouts(begun)
        agent.train().losses(trajectory).total.backward()

    return (fit, batch.total / len(seen.action)), (improve, contexts.total / len(begun.action))


def seconds_per_env_step(config: Config, training: Training) -> float:
    """What one environment step's updates take on this CPU, by a rehearsal on copies, with some of their rows.

    What trains is left as it is. Collecting comes on top, and is little beside them.
    """
    copies = copy_without_fabric(training.world_model), copy_without_fabric(training.agent)
    ratios = training.plan.world_model, training.plan.agent
    with torch.random.fork_rng(devices=random_devices()), training.fabric.autocast():
        parts = rehearsal(config, *copies, REHEARSED_FRAMES)
        seconds = [
            _timed(function) * updates * ratio.updates_per_env_step
            for (function, updates), ratio in zip(parts, ratios, strict=True)
        ]
    return sum(seconds) / training.fabric.world_size


def time_to_come(config: Config, training: Training) -> str | None:
    """How long the rest of a training on a CPU will take, as a sentence, or None where that cannot be told: what is
    compiled first is not rehearsed, nor is a GPU.
    """
    plan = training.plan
    steps = plan.env_steps - max(training.progress.env_steps, plan.warmup_steps)
    if steps <= 0 or training.fabric.device.type != "cpu" or config.compile is True:
        return None
    try:
        seconds = steps * seconds_per_env_step(config, training)
    except Exception:  # of a part that cannot be copied, or for want of memory: the training itself will tell
        return None
    told = f"about {_duration(seconds)} on this CPU"
    if seconds < LONG:
        return told
    return f"{told}; `stormlit train quickstart` takes minutes, and a GPU is many times faster"


def _noise(world_model: WorldModel, windows: Windows, rows: int) -> Batch:
    """At most ``rows`` windows of noise, or of zeros where vectors are seen, in the shape of real ones.

    Drawn apart from everything that training draws.
    """
    length = windows.length
    rows = min(windows.total, rows)
    generator = torch.Generator().manual_seed(0)
    space = world_model.observation_space
    frames = torch.from_numpy(space.zeros(rows, length))
    if not space.vectors:
        frames.random_(256, generator=generator)
    flags = torch.zeros(rows, length, dtype=torch.bool)
    action = torch.from_numpy(world_model.action_space.zeros(rows, length))
    return Batch(channels_first(space, frames), action, flags.float(), flags, flags.clone())


def _timed(function: Callable[[], object]) -> float:
    """Seconds of one call, or, of what is short, of a second one, without what only the first has to do."""
    for _ in range(2):
        started = time.perf_counter()
        function()
        seconds = time.perf_counter() - started
        if seconds > 1:
            break
    return seconds


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an exception of Python or PyTorch says; on a CPU PyTorch has no class for it."""
    error = getattr(error, "inner_exception", error)  # of the compiler, around what it ran
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _duration(seconds: float) -> str:
    """
    >>> _duration(40), _duration(600), _duration(9000), _duration(200000)
    ('a minute', '10 minutes', '2.5 hours', '2.3 days')
    """
    if seconds < 90:
        return "a minute"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


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
        chosen = most
        if most > 1:
            with contextlib.suppress(Exception):  # of a part that cannot be copied or counted: as PyTorch would have it
                work = gflop(config, world_model, agent) / processes
                chosen = max(1, min(int(work / GFLOP_A_THREAD), most))
        config = dataclasses.replace(config, threads=chosen)
    torch.set_num_threads(min(int(config.threads), most_threads()))
    return config


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
    agent: matrix products, convolutions and attention, as PyTorch counts them, in one row of noise.
    """
    total = 0.0
    with torch.random.fork_rng(devices=random_devices()):
        for function, updates in rehearsal(config, copy_without_fabric(world_model), copy_without_fabric(agent)):
            with FlopCounterMode(display=False) as counter:
                function()
            total += counter.get_total_flops() * updates
    return total / 1e9
