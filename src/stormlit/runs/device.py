"""What a run computes with: device, precision, processes."""

from __future__ import annotations

import atexit
import ctypes
import datetime
import functools
import os
import sys
from typing import TYPE_CHECKING

import torch

from stormlit.config.schema import Config
from stormlit.errors import ConfigError
from stormlit.storm.fabric_internals import given_to_fabric_run, launched_by_fabric

if TYPE_CHECKING:
    from lightning.fabric import Fabric

# Parameters of glibc's mallopt, see malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def make_fabric(config: Config) -> Fabric:
    """Device, precision and processes. Under ``fabric run`` its options decide, elsewhere the configuration.

    Raises ``ConfigError`` when both ask for a different precision or accelerator, or the accelerator is not there.
    """
    # Takes longer to import than PyTorch itself, which a command that trains nothing need not wait for.
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    accelerator = _agreed("accelerator", config.accelerator)
    if accelerator not in ("auto", "cpu", "cuda"):  # what `fabric run` was given
        raise ConfigError(f"accelerator={accelerator} is not supported: choose cpu or cuda")
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"accelerator={accelerator}: this machine has no CUDA device; choose auto or cpu")
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    precision = _agreed("precision", config.precision)
    if precision == "auto":
        precision = ("bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed") if on_gpu else "32-true"
    if precision == "16-mixed" and not on_gpu:
        raise ConfigError("precision=16-mixed needs a GPU; choose bf16-mixed or 32-true on the CPU")
    if launched_by_fabric():
        # Fabric reads what `fabric run` was given from the environment, and refuses to be told again.
        fabric = Fabric(
            accelerator="auto" if given_to_fabric_run("accelerator") else ("cuda" if on_gpu else "cpu"),
            precision=None if given_to_fabric_run("precision") else precision,  # type: ignore[arg-type]
        )
        atexit.register(_end_process_group)
    else:
        fabric = Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            plugins=LightningEnvironment(),  # not that of a SLURM job, whose tasks are no business of one process
        )
        fabric.launch()
    # With several processes Fabric would round every float that goes into a training step to half precision, rewards
    # and continuations too; autocast, which we open ourselves, rounds only where it is safe.
    fabric.strategy.precision.convert_input = lambda data: data  # type: ignore[method-assign]
    if config.deterministic:
        # cuBLAS reads its setting at its first call; filling would touch all of the replay buffer.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if on_gpu:
        torch.set_float32_matmul_precision("high")
        # Its gradients with a mask can be NaN (github.com/pytorch/pytorch/issues/196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        keep_freed_memory()
    return fabric


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed for what is allocated next, instead of giving it back to the system.

    Training on a CPU allocates and frees the same large tensors at every update. By default each is mapped anew every
    time, and all its pages are cleared and mapped one by one. The process then stays as large as it ever was. Returns
    False, and does nothing, where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def wait_for_all(fabric: Fabric) -> None:
    """Wait until every process is here, however long one of them takes: a collective of the training gives up after
    half an hour, which an evaluation may last.
    """
    if fabric.world_size > 1:
        torch.distributed.barrier(_patient_group())


@functools.cache
def _patient_group() -> torch.distributed.ProcessGroup:
    return torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=365))


def _end_process_group() -> None:
    # Fabric leaves it open on a CPU, and its threads now and then abort an interpreter that ends before them.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _agreed(name: str, configured: str) -> str:
    """What ``fabric run`` was given for an option, else the configuration's; both may not name different things."""
    given = given_to_fabric_run(name)
    given = {"gpu": "cuda", "16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true"}.get(given or "", given)
    if given is None or given == "auto":
        return configured
    if configured not in ("auto", given):
        raise ConfigError(f"{name}={configured} contradicts `fabric run --{name} {given}`: give it in one place")
    return given
