"""Cells as tasks of Ray: on this machine, or on a cluster that Ray has."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from stormlit.errors import ConfigError, first_line
from stormlit.registry import Option
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.launch import THREAD_VARIABLES, ClusterGpus, Job, Jobs, Launcher
from stormlit.sweeps.worker import train_here

LOST, CANCELLED = -9, 130
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
PROBE = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
OBJECT_STORE_BYTES = 100 * 2**20  # tasks are given words and return a number


class RayJob(Job):
    """A task; it starts again by itself when its worker or node is lost.  reference: of what it returns."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def code(self) -> int | None:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self._ray.get(self._reference))
        except self._ray.exceptions.TaskCancelledError:
            return CANCELLED
        except self._ray.exceptions.RayError:
            return LOST

    def stop(self) -> None:
        self._ray.cancel(self._reference)  # as Ctrl-C does, which a training answers by saving


class RayLauncher(Launcher):
    """Tasks of Ray. The cells' folder must be one that every node has.

    on_gpu: whether they would train on a GPU here.  threads: the cores that each takes.
    Raises ``ConfigError`` where Ray is not installed, and for GPUs that it cannot hand out.
    """

    def __init__(
        self,
        on_gpu: bool,
        threads: int,
        *,
        jobs: Jobs = None,
        gpus_per_cell: ClusterGpus = None,
        address: Annotated[
            str | None, Option("of a running Ray cluster, HOST:PORT or auto; null: one of this machine alone")
        ] = None,
        lost_workers: Annotated[
            int, Option("how often a cell whose worker or node was lost begins again by itself", 0, 10**6)
        ] = 10,
    ) -> None:
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError as error:
            raise ConfigError(
                "launcher=ray needs Ray: `pip install 'stormlit[ray]'`, or use launcher=processes"
            ) from error
        self._ray, self._address, self.slots = ray, address, jobs
        gpus = float(on_gpu) if gpus_per_cell is None else gpus_per_cell
        if gpus > 1 and not gpus.is_integer():
            raise ConfigError(f"gpus_per_cell={gpus:g}: Ray hands out parts of one GPU, or whole ones")
        self._needs = {"CPU": threads, "GPU": gpus}
        self._task = ray.remote(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=lost_workers,
            max_calls=1,  # a process of its own for each cell
        )(train_here)
        self._variables = dict.fromkeys(THREAD_VARIABLES, str(threads))

    def open(self) -> None:
        """Raises ``ConfigError`` where no Ray answers at the address, or this machine has no room for a cell."""
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        address = self._address or "local"
        if self._address is None:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        else:
            _refuse_if_dead(self._address)
        try:
            self._ray.init(address=address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"address={address}: no Ray could be reached there ({first_line(error)}); one that wants a token is "
                "given it with RAY_AUTH_MODE=token"
            ) from error
        room = self._ray.cluster_resources()
        if self._address is None and any(room.get(kind, 0) < needed for kind, needed in self._needs.items()):
            self.close()
            raise ConfigError(
                f"a cell takes {self._needs['CPU']:g} cores (threads) and {self._needs['GPU']:g} GPUs (gpus_per_cell), "
                f"this machine has {room.get('CPU', 0):g} and {room.get('GPU', 0):g}"
            )

    def start(self, cell: Cell) -> Job:
        return RayJob(self._ray, self._task.remote(cell.words, cell.log, Path.cwd(), self._variables))

    def close(self) -> None:
        self._ray.shutdown()


def _refuse_if_dead(address: str) -> None:
    """Ray itself waits for many minutes, in which nothing can be interrupted; so another process asks."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():
            place = host.rpartition("/")[2].strip("[]"), int(port)
            socket.create_connection(place, timeout=CONNECT_SECONDS).close()
        subprocess.run([sys.executable, "-c", PROBE, address], capture_output=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"address={address}: no Ray answers there within {ANSWER_SECONDS:g} seconds") from None
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"address={address}: no Ray answers there ({reason})") from error
