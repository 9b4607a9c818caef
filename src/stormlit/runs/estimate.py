"""What a training will take, told before it begins: memory, and time measured on a rehearsal."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from stormlit.analysis.evaluate import random_devices
from stormlit.config.schema import Config
from stormlit.data import Batch
from stormlit.errors import ConfigError
from stormlit.ops.spaces import channels_first
from stormlit.storm.fabric_internals import copy_without_fabric
from stormlit.storm.replay import Windows
from stormlit.storm.training import Training
from stormlit.storm.world_model import WorldModel

FLOAT = 4  # bytes
REHEARSED_FRAMES = 128
LONG = 3600.0  # seconds from which on a smaller configuration is worth a word


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


def seconds_per_env_step(training: Training) -> float:
    """What one environment step's updates take on this CPU, by a rehearsal on copies, with some of their rows.

    What trains is left as it is. Collecting comes on top, and is little beside them.
    """
    plan, experience = training.plan, training.experience
    world_model, agent = copy_without_fabric(training.world_model).train(), copy_without_fabric(training.agent).train()
    batch, contexts = (
        noise(training.world_model, windows, max(REHEARSED_FRAMES // windows.length, 1))
        for windows in (experience.batch, experience.contexts)
    )
    with torch.random.fork_rng(devices=random_devices()), training.fabric.autocast():
        fitting = _timed(lambda: world_model.losses(batch).total.backward())
        improving = _timed(lambda: agent.losses(training.imagine(contexts)).total.backward())
    fitting *= experience.batch.total / len(batch.action) * plan.world_model.updates_per_env_step
    improving *= experience.contexts.total / len(contexts.action) * plan.agent.updates_per_env_step
    return fitting + improving


def time_to_come(training: Training) -> str | None:
    """How long the rest of the training will take, as a sentence, or None where that cannot be told."""
    plan = training.plan
    steps = plan.env_steps - max(training.progress.env_steps, plan.warmup_steps)
    if steps <= 0:
        return None
    try:
        seconds = steps * seconds_per_env_step(training)
    except Exception:  # of a part that cannot be copied, or for want of memory: the training itself will tell
        return None
    told = f"about {_duration(seconds)} on this CPU"
    if seconds < LONG:
        return told
    return f"{told}; `stormlit train quickstart` takes minutes, and a GPU is many times faster"


def noise(world_model: WorldModel, windows: Windows, rows: int) -> Batch:
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
