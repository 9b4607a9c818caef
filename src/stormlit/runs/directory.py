"""Where a run leaves its files (docs/architecture.md has the list), and how a run is found again."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stormlit.errors import CheckpointError, ConfigError, nearest
from stormlit.files import read_json, write_json

BEST = ":best"  # behind what names a run: the weights that were evaluated best


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of one run.  path: ``<run.dir>/<run.name>``."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def root(self) -> Path:
        """The folder that holds all runs."""
        return self.path.parent

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    @property
    def media(self) -> Path:
        return self.path / "media"

    @property
    def returns_plot(self) -> Path:
        return self.media / "returns.png"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    def resume_command(self, *words: str) -> str:
        """What goes on with this run when typed, in whatever folder."""
        return shlex.join(["stormlit", "resume", str(self.path.resolve()), *words])

    def write_identity(self, run_id: str) -> None:
        """Remember the tracker's run id."""
        write_json(self.path / "run.json", {"name": self.name, "run_id": run_id})

    def run_id(self) -> str | None:
        """The tracker's run id, None where the run never got one; raises ``CheckpointError`` for a damaged file."""
        file = self.path / "run.json"
        run_id = read_json(file).get("run_id") if file.is_file() else None
        return str(run_id) if run_id else None

    def finished_at(self) -> int | None:
        """The environment steps at which the run was done to its last evaluation, None if it is not."""
        with contextlib.suppress(CheckpointError):  # a damaged file: the end is made once more
            env_steps = read_json(self.path / "finished.json").get("env_steps")
            return env_steps if isinstance(env_steps, int) else None
        return None

    def write_finished(self, env_steps: int) -> None:
        write_json(self.path / "finished.json", {"env_steps": env_steps})

    def forget_finished(self) -> None:
        (self.path / "finished.json").unlink(missing_ok=True)


@contextlib.contextmanager
def writable(run: RunDirectory) -> Iterator[None]:
    """A block that writes the run's files, and raises ``ConfigError`` where the disk does not take them."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"run.dir={run.root}: cannot write there ({error.strerror or error})") from error


@contextlib.contextmanager
def exclusive(run: RunDirectory, otherwise: str = "choose another name") -> Iterator[None]:
    """Hold the run for this process; makes its folder. The lock goes with the process, however that ends.

    otherwise: the end of the error's sentence.
    Raises ``ConfigError`` when another process trains the run, or the folder cannot be written.
    """
    with writable(run):
        run.path.mkdir(parents=True, exist_ok=True)
        lock = (run.path / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(run, otherwise) from None
        yield


def is_training(run: RunDirectory) -> bool:
    """Whether a process trains the run at this moment; leaves no trace."""
    try:
        with (run.path / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: several processes may ask at once
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def refuse_if_training(run: RunDirectory) -> None:
    """Raise ``ConfigError`` when a process trains the run at this moment."""
    if is_training(run):
        raise _busy(run)


def _busy(run: RunDirectory, otherwise: str = "choose another name") -> ConfigError:
    return ConfigError(f"run.name={run.name}: another process is training that run in {run.root}; {otherwise}")


def find_run(reference: str, root: Path) -> tuple[RunDirectory, Path | None]:
    """Find a run by name, MLflow run id, or the path of the run or of one of its checkpoints.

    root: the folder that holds all runs.  Returns the run's folder, and the checkpoint where one was named, by its
    path or with ``BEST`` behind the run's.  Raises ``CheckpointError`` when there is none.
    """
    if reference.endswith(BEST):
        run, _ = find_run(reference.removesuffix(BEST), root)
        found = sorted(run.checkpoints.glob("best-*/manifest.json"))  # a later one is a better one
        if not found:
            raise CheckpointError(f"{reference}: that run has kept no best weights, as checkpoint.keep_best=true does")
        return run, found[-1].parent
    named = root / reference
    if os.path.exists(reference) and (os.sep in reference or not os.path.exists(named)):
        return _run_of_path(Path(reference).resolve())
    if os.path.exists(named / "run.json"):
        return RunDirectory(named), None
    runs = {file.parent.name: RunDirectory(file.parent) for file in root.glob("*/run.json")}
    for run in runs.values():
        with contextlib.suppress(CheckpointError):  # another run's damaged file is no reason not to find this one
            if run.run_id() == reference:
                return run, None
    known = f"runs there are {', '.join(sorted(runs))}" if runs else "there are no runs there"
    raise CheckpointError(
        f"no run '{reference}' in {root}{nearest(reference, runs)}: expected a run's name, its MLflow run id or the "
        f"path of a checkpoint; {known} (another folder is chosen with run.dir=DIR)"
    )


def _run_of_path(path: Path) -> tuple[RunDirectory, Path | None]:
    folder = path if path.is_dir() else path.parent
    if (folder / "manifest.json").is_file():
        return RunDirectory(folder.parent.parent), folder
    if (folder / "run.json").is_file():
        return RunDirectory(folder), None
    raise CheckpointError(
        f"{path} is not a stormlit checkpoint: expected a folder with a manifest.json, such as "
        "runs/NAME/checkpoints/step-000002500"
    )
