"""Where cells run: what a launcher does, and the one that starts processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated, BinaryIO

import torch

from stormlit.errors import ConfigError
from stormlit.registry import Option
from stormlit.runs.estimate import cores
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.worker import begin_part

Jobs = Annotated[int | None, Option("cells at once; null: as many as there is room for", 1, 10**4)]
GpuShare = Annotated[float, Option("share of a GPU that each cell takes", 0.001, 64)]
ClusterGpus = Annotated[
    float | None, Option("GPUs that each cell takes, or the share of one; null: 1 if this machine has any", 0, 64)
]

# Libraries read them when they are loaded, each its own.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job(ABC):
    """A cell that was started."""

    @abstractmethod
    def code(self) -> int | None:
        """Its exit code, negative or above 128 for a signal, None while it runs; never waits."""

    @abstractmethod
    def stop(self) -> None:
        """Ask it to save and end."""


class Launcher(ABC):
    """Starts cells.  slots: how many at once, None where the launcher's own queue decides."""

    slots: int | None

    def open(self) -> None:  # noqa: B027 - optional
        """Get ready to start cells; raises ``ConfigError`` where that cannot be."""

    @abstractmethod
    def start(self, cell: Cell) -> Job:
        """Start ``stormlit train`` with the cell's words, its output appended to ``cell.log``."""

    def close(self) -> None:  # noqa: B027 - optional
        """Give back what was taken for starting."""


class ProcessJob(Job):
    """A process of this machine."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def code(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)


class ProcessLauncher(Launcher):
    """Processes of this machine, in this process's group: what ends the group ends them.

    on_gpu: whether cells train on a GPU.  threads: that each computes with.
    Raises ``ConfigError`` for a share of a GPU that no GPU has room for.
    """

    def __init__(self, on_gpu: bool, threads: int, *, jobs: Jobs = None, gpus_per_cell: GpuShare = 1.0) -> None:
        self._gpus = gpu_groups(visible_gpus(), gpus_per_cell) if on_gpu else []
        if on_gpu and not self._gpus:
            raise ConfigError(f"gpus_per_cell={gpus_per_cell:g}: there are only {len(visible_gpus())} GPUs here")
        room = len(self._gpus) if on_gpu else max(cores() // threads, 1)
        self.slots: int = min(jobs, room) if on_gpu and jobs else jobs or room
        self._taken: dict[int, ProcessJob] = {}  # by the number of the slot

    def start(self, cell: Cell) -> Job:
        slot = next(number for number in range(self.slots) if self._is_free(number))
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(cell.threads))}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot]
        with opened_log(cell) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stormlit", "train", *cell.words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self._taken[slot] = ProcessJob(process)
        return self._taken[slot]

    def _is_free(self, slot: int) -> bool:
        return slot not in self._taken or self._taken[slot].code() is not None


@contextlib.contextmanager
def opened_log(cell: Cell) -> Iterator[BinaryIO]:
    """A cell's log, at its end, below a line that says when this part of it began."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with cell.log.open("ab") as log:
        begin_part(log)
        yield log


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(index) for index in range(torch.cuda.device_count())] if named is None else named.split(",")
    return [name.strip() for name in names if name.strip() and name.strip() != "-1"]


def gpu_groups(gpus: Sequence[str], share: float) -> list[str]:
    """What each slot may see: one GPU that several share, or several whole ones.

    >>> gpu_groups(["0", "1"], 0.5), gpu_groups(["0", "1", "2"], 2)
    (['0', '1', '0', '1'], ['0,1'])
    """
    if share < 1:
        return [*gpus] * int(1 / share + 1e-9)
    each = int(share)
    return [",".join(gpus[first : first + each]) for first in range(0, len(gpus) - each + 1, each)]
