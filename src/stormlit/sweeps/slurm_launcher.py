"""Cells as jobs of Slurm, by submitit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from stormlit.errors import ConfigError
from stormlit.registry import Option
from stormlit.sweeps.cells import Cell
from stormlit.sweeps.launch import THREAD_VARIABLES, ClusterGpus, Job, Jobs, Launcher
from stormlit.sweeps.worker import train_here

LOST = -9


class SlurmJob(Job):
    """A job as submitit has it."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def code(self) -> int | None:
        if not self._job.done():
            return None
        try:
            return int(self._job.result())
        except Exception:  # killed before it could say anything, or submitit's own failure
            return LOST

    def stop(self) -> None:
        self._job.cancel(check=False)


class SlurmLauncher(Launcher):
    """Jobs of Slurm; this command has to stay and watch them. The cells' folder must be one that every node has.

    on_gpu: whether they would train on a GPU here.  threads: the cores that each takes.
    Raises ``ConfigError`` where submitit is not installed, and for a part of a GPU.
    """

    def __init__(
        self,
        on_gpu: bool,
        threads: int,
        *,
        jobs: Jobs = None,
        gpus_per_cell: ClusterGpus = None,
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
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                "launcher=slurm needs submitit: `pip install 'stormlit[slurm]'`, or use launcher=processes"
            ) from error
        gpus = float(on_gpu) if gpus_per_cell is None else gpus_per_cell
        if not gpus.is_integer():
            raise ConfigError(f"gpus_per_cell={gpus:g}: Slurm hands out whole GPUs")
        self._submitit, self._cluster, self.slots = submitit, cluster, jobs
        self._variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self._parameters: dict[str, Any] = {
            "timeout_min": minutes,
            "cpus_per_task": threads,
            "gpus_per_node": int(gpus),
            "mem_gb": memory_gb,
        }
        if cluster == "slurm":
            self._parameters |= {"slurm_partition": partition, "slurm_account": account}

    def open(self) -> None:
        """Raises ``ConfigError`` where there is no Slurm."""
        if self._cluster == "slurm" and shutil.which("sbatch") is None:
            raise ConfigError(
                "launcher=slurm: there is no Slurm here (no sbatch); use launcher=processes, or cluster=local to try it"
            )

    def start(self, cell: Cell) -> Job:
        executor = self._submitit.AutoExecutor(folder=cell.folder / "slurm", cluster=self._cluster)
        given = {key: value for key, value in self._parameters.items() if value is not None}
        executor.update_parameters(name=cell.name, **given)
        return SlurmJob(executor.submit(train_here, cell.words, cell.log, Path.cwd(), self._variables))
