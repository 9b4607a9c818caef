"""Where cells run: processes of this machine, tasks of Ray or jobs of Slurm, and the words that choose and set that."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stormlit.config.text import value_of_word
from stormlit.errors import ConfigError, first_line, nearest
from stormlit.registry import Option, check_values, options, structured
from stormlit.runs.estimate import cores
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.worker import begin_part, thread_variables, train_here

Jobs = Annotated[int | None, Option("cells at once; null: as many as there is room for", 1, 10**4)]
Retries = Annotated[int, Option("how often a cell that has failed is started again", 0, 1000)]
GpuShare = Annotated[float, Option("share of a GPU that each cell takes", 0.001, 64)]
ClusterGpus = Annotated[
    float | None, Option("GPUs that each cell takes, or the share of one; null: 1 if this machine has any", 0, 64)
]

LOST = -signal.SIGKILL  # the code of a job that could not say how it ended
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
PROBE = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False)"
OBJECT_STORE_BYTES = 100 * 2**20  # Ray's tasks are given words and return a number


class Launcher(ABC):
    """Starts cells, each as a job that only the launcher knows how to ask.

    slots: how many at once, None where the launcher's own queue decides.  retries: for each cell that fails.
    Every launcher is given ``on_gpu``: whether cells train on a GPU, as far as this machine can tell, and ``threads``:
    the most that one of them computes with on a CPU.
    """

    slots: int | None
    retries: int

    def open(self) -> None:  # noqa: B027 - optional
        """Get ready to start cells; raises ``ConfigError`` where that cannot be."""

    @abstractmethod
    def start(self, cell: Cell) -> Any:
        """Start ``stormlit train`` with the cell's words, its output appended to ``cell.log``; returns the job."""

    @abstractmethod
    def code(self, job: Any) -> int | None:
        """A job's exit code, negative or above 128 for a signal, None while it runs; never waits."""

    @abstractmethod
    def stop(self, job: Any) -> None:
        """Ask a job to save and end."""

    def close(self) -> None:  # noqa: B027 - optional
        """Give back what was taken for starting."""


class ProcessLauncher(Launcher):
    """Processes of this machine, in this process's group: what ends the group ends them.

    Raises ``ConfigError`` for a share of a GPU that no GPU has room for.
    """

    def __init__(
        self, on_gpu: bool, threads: int, *, jobs: Jobs = None, gpus_per_cell: GpuShare = 1.0, retries: Retries = 2
    ) -> None:
        self.retries = retries
        self._gpus = gpu_groups(visible_gpus(), gpus_per_cell) if on_gpu else []
        if on_gpu and not self._gpus:
            raise ConfigError(f"gpus_per_cell={gpus_per_cell:g}: there are only {len(visible_gpus())} GPUs here")
        room = len(self._gpus) if on_gpu else max(cores() // threads, 1)
        self.slots: int = min(jobs, room) if on_gpu and jobs else jobs or room
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by the number of the slot

    def start(self, cell: Cell) -> subprocess.Popen[bytes]:
        taken = {slot for slot, process in self._processes.items() if process.poll() is None}
        slot = next(number for number in range(self.slots) if number not in taken)
        environment = {**os.environ, **thread_variables(cell.threads)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot]
        command = [sys.executable, "-m", "stormlit", "train", *cell.words]
        cell.folder.mkdir(parents=True, exist_ok=True)
        with cell.log.open("ab") as log:
            begin_part(log)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self._processes[slot] = process
        return process

    def code(self, job: subprocess.Popen[bytes]) -> int | None:
        return job.poll()

    def stop(self, job: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            job.send_signal(signal.SIGTERM)


class RayLauncher(Launcher):
    """Tasks of Ray. The cells' folder must be one that every node has.

    Raises ``ConfigError`` where Ray is not installed, and for GPUs that it cannot hand out.
    """

    def __init__(
        self,
        on_gpu: bool,
        threads: int,
        *,
        jobs: Jobs = None,
        gpus_per_cell: ClusterGpus = None,
        retries: Retries = 2,
        address: Annotated[
            str | None, Option("of a running Ray cluster, HOST:PORT or auto; null: one of this machine alone")
        ] = None,
        lost_workers: Annotated[
            int, Option("how often a cell whose worker or node was lost begins again by itself", 0, 10**6)
        ] = 10,
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = _imported("ray", "ray")
        gpus = float(on_gpu) if gpus_per_cell is None else gpus_per_cell
        if gpus > 1 and not gpus.is_integer():
            raise ConfigError(f"gpus_per_cell={gpus:g}: Ray hands out parts of one GPU, or whole ones")
        self.slots, self.retries = jobs, retries
        self._address, self._threads, self._gpus = address, threads, gpus
        # A process of its own for each cell; Ray starts it again when that is lost.
        remote = self._ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=lost_workers, max_calls=1)
        self._task = remote(train_here)

    def open(self) -> None:
        """Raises ``ConfigError`` where no Ray answers at the address, or this machine has no room for a cell."""
        address, settings = self._address or "local", dict[str, Any]()
        if self._address is None:
            settings = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        else:
            _refuse_if_dead(self._address)
        try:
            self._ray.init(address=address, logging_level="ERROR", log_to_driver=False, **settings)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"address={address}: no Ray could be reached there ({first_line(error)}); one that wants a token is "
                "given it with RAY_AUTH_MODE=token"
            ) from error
        room = self._ray.cluster_resources()
        if self._address is None and (room.get("CPU", 0) < self._threads or room.get("GPU", 0) < self._gpus):
            self.close()
            raise ConfigError(
                f"a cell takes {self._threads} cores (threads) and {self._gpus:g} GPUs (gpus_per_cell), "
                f"this machine has {room.get('CPU', 0):g} and {room.get('GPU', 0):g}"
            )

    def start(self, cell: Cell) -> Any:
        return self._task.remote(cell.words, cell.log, Path.cwd(), self._threads)

    def code(self, job: Any) -> int | None:
        if not self._ray.wait([job], timeout=0)[0]:
            return None
        try:
            return int(self._ray.get(job))
        except self._ray.exceptions.RayError:  # lost too often, or cancelled
            return LOST

    def stop(self, job: Any) -> None:
        self._ray.cancel(job)  # as Ctrl-C does, which a training answers by saving

    def close(self) -> None:
        self._ray.shutdown()


class SlurmLauncher(Launcher):
    """Jobs of Slurm, by submitit; this command stays and watches them. Every node must have the cells' folder.

    Raises ``ConfigError`` where submitit is not installed, and for a part of a GPU.
    """

    def __init__(
        self,
        on_gpu: bool,
        threads: int,
        *,
        jobs: Jobs = None,
        gpus_per_cell: ClusterGpus = None,
        retries: Retries = 2,
        partition: Annotated[str | None, Option("of Slurm; null: its default")] = None,
        account: Annotated[str | None, Option("that Slurm charges; null: its default")] = None,
        minutes: Annotated[
            int, Option("time limit of a job; a cell that needs longer goes on in the next", 1, 10**6)
        ] = 1440,
        memory_gb: Annotated[float | None, Option("memory of a job; null: Slurm's default", 0.1, 10**5)] = None,
        cluster: Annotated[
            Literal["slurm", "local"], Option("local: processes of this machine, to try what would be submitted")
        ] = "slurm",
    ) -> None:
        self._submitit = _imported("submitit", "slurm")
        gpus = float(on_gpu) if gpus_per_cell is None else gpus_per_cell
        if not gpus.is_integer():
            raise ConfigError(f"gpus_per_cell={gpus:g}: Slurm hands out whole GPUs")
        self.slots, self.retries = jobs, retries
        self._cluster, self._threads = cluster, threads
        asked = {"timeout_min": minutes, "cpus_per_task": threads, "gpus_per_node": int(gpus), "mem_gb": memory_gb}
        of_slurm = {"slurm_partition": partition, "slurm_account": account} if cluster == "slurm" else {}
        self._parameters = {name: value for name, value in {**asked, **of_slurm}.items() if value is not None}

    def open(self) -> None:
        """Raises ``ConfigError`` where there is no Slurm."""
        if self._cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=slurm: there is no Slurm here (no sbatch); use launcher=processes, or cluster=local to try it"
            )

    def start(self, cell: Cell) -> Any:
        executor = self._submitit.AutoExecutor(folder=cell.folder / "slurm", cluster=self._cluster)
        executor.update_parameters(name=cell.name, **self._parameters)
        return executor.submit(train_here, cell.words, cell.log, Path.cwd(), self._threads)

    def code(self, job: Any) -> int | None:
        if not job.done():
            return None
        try:
            return int(job.result())
        except Exception:  # killed before it could say anything, or submitit's own failure
            return LOST

    def stop(self, job: Any) -> None:
        job.cancel(check=False)


LAUNCHERS: dict[str, type] = {"processes": ProcessLauncher, "ray": RayLauncher, "slurm": SlurmLauncher}


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Words of the configuration, and those of the launcher as a mapping; of two for one key the last counts."""
    keys = {"launcher", *(key for launcher in LAUNCHERS.values() for key in options(launcher))}
    pairs = [word.partition("=") for word in overrides]
    configuration = ["".join(pair) for pair in pairs if pair[0] not in keys]
    return configuration, {key: value for key, _, value in pairs if key in keys}


def build(given: Mapping[str, str], on_gpu: bool, threads: int) -> Launcher:
    """The launcher that words choose; raises ``ConfigError``."""
    name = given.get("launcher", "processes")
    if name not in LAUNCHERS:
        raise ConfigError(
            f"launcher={name} does not exist{nearest(name, LAUNCHERS)}; choose one of {', '.join(LAUNCHERS)}"
        )
    declared = options(LAUNCHERS[name])
    texts = {key: text for key, text in given.items() if key != "launcher"}
    for key in texts.keys() - declared.keys():
        raise ConfigError(f"launcher={name} has no option '{key}'; it has {', '.join(declared)}")
    values = {key: value_of_word(declared[key], text, key) for key, text in texts.items()}
    try:
        filled = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(structured(LAUNCHERS[name]), values)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{getattr(error, 'full_key', None) or 'launcher'}: {first_line(error)}") from error
    check_values(declared, filled)
    return LAUNCHERS[name](on_gpu, threads, **filled)


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]


def gpu_groups(gpus: Sequence[str], share: float) -> list[str]:
    """What each slot may see: one GPU that several share, or several whole ones.

    >>> gpu_groups(["0", "1"], 0.5), gpu_groups(["0", "1", "2"], 2)
    (['0', '1', '0', '1'], ['0,1'])
    """
    if share < 1:
        return [*gpus] * int(1 / share + 1e-9)
    each = int(share)
    return [",".join(gpus[first : first + each]) for first in range(0, len(gpus) - each + 1, each)]


def _imported(module: str, launcher: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"launcher={launcher} needs {module}: `pip install 'stormlit[{launcher}]'`, or use launcher=processes"
        ) from error


def _refuse_if_dead(address: str) -> None:
    """Ray itself waits for minutes, in which nothing can be interrupted; so another process asks."""
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
