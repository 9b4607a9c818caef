"""Grids whose processes are killed, stopped or lost have the results of grids to which nothing happened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_ablation import VARY, WORDS, command, result_of

from stormlit.cli import main
from stormlit.runs.directory import RunDirectory
from stormlit.sweeps.cells import cells_of
from stormlit.sweeps.grid import read_grid
from training import measured

ONE, ONE_CELL = VARY.replace("1,2", "2"), "num_layers_2-Catch-s0"


def files_and_words(*words: str) -> tuple[list[str], list[str]]:
    return [word for word in words if "=" not in word], [word for word in words if "=" in word]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every cell of the grid comes to when nothing happens to it."""
    root = tmp_path_factory.mktemp("unbroken")
    files, words = files_and_words(*WORDS, f"run.dir={root}")
    cells = cells_of(read_grid(files, words, [VARY], "2", "grid"))
    for cell in cells:
        assert main(["train", *cell.words]) == 0
    return {cell.name: measured(result_of(cell.folder)) for cell in cells}


def parts(cell: Path) -> int:
    """How often a cell was begun, as its log tells."""
    return sum(line.startswith("--- ") for line in (cell / "cell.log").read_text().splitlines())


def assert_each_once(grid: Path, expected: dict[str, dict[str, Any]], done: dict[str, int]) -> None:
    """Every cell has the result it should have and told it in one of its parts only; those that had it before, with
    the parts they then had, were not begun again. One killed between its result and its last words never told it.
    """
    attempts = json.loads((grid / "grid.json").read_text())["attempts"]
    for name, result in expected.items():
        assert measured(result_of(grid / name)) == result, name
        log = (grid / name / "cell.log").read_text()
        assert parts(grid / name) == attempts[name] == done.get(name, attempts[name]), log
        assert log.count("look first") == 1 or (name in done and "look first" not in log), log


def end_when(condition: Callable[[], bool], number: signal.Signals, words: list[str], cwd: Path) -> int:
    """Start the command in a process group of its own, and once the condition holds send SIGKILL to all of that, or
    another signal to the command alone; returns its exit code.
    """
    with (cwd / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stormlit", *words], cwd=cwd, stdout=log, stderr=log, start_new_session=True
        )
    while not condition():
        assert process.poll() is None, (cwd / "log").read_text()
        time.sleep(0.005)
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    return process.wait()


def test_a_grid_killed_and_stopped_is_as_one_that_was_not(
    tmp_path: Path, unbroken: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    grid, words = tmp_path / "grid", command(tmp_path, "jobs=2")

    def checkpoints() -> set[Path]:
        return {file.parent for file in grid.glob("*/checkpoints/step-*/manifest.json")}

    def finished() -> set[Path]:
        cells = {file.parent for file in grid.glob("*/result.json")}
        return {cell for cell in cells if RunDirectory(cell).finished_at() is not None}

    halfway = "step-000000030"
    killed = end_when(lambda: any(f.name >= halfway for f in checkpoints()), signal.SIGKILL, words, tmp_path)
    assert killed == -signal.SIGKILL
    assert end_when(lambda: bool(finished()), signal.SIGKILL, words, tmp_path) == -signal.SIGKILL
    before, done = checkpoints(), {cell.name: parts(cell) for cell in finished()}
    stopped = end_when(lambda: bool(checkpoints() - before), signal.SIGINT, words, tmp_path)
    assert stopped == 128 + signal.SIGINT and "the same command goes on" in (tmp_path / "log").read_text()
    for cell in {folder.parents[1] for folder in checkpoints() - before} - finished():
        assert "stopped by SIGTERM after" in (cell / "cell.log").read_text()
    assert len(done) <= len(finished()) < 4
    capsys.readouterr()
    assert main(words) == 0
    told = capsys.readouterr().out
    assert_each_once(grid, unbroken, done)
    assert "num_layers_2" in told and "(2 seeds)" in told
    assert (grid / "report" / "report.html").exists()
    # Given once more, nothing is left to do.
    written = {file: file.stat().st_mtime_ns for file in grid.glob("*/result.json")}
    assert main(words) == 0
    assert written == {file: file.stat().st_mtime_ns for file in grid.glob("*/result.json")}


@pytest.mark.slow
def test_ray_begins_a_lost_worker_s_cell_again(
    tmp_path: Path,
    unbroken: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A head of its own, with a worker killed while it trains; and an address at which nothing answers."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or pytest.skip("Ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray leaves a token in the home folder
    grid = tmp_path / "grid"
    (tmp_path / "own.yaml").write_text("checkpoint: {every: 6}")  # looked for in the folder of the command
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        words = [*command(tmp_path, "own.yaml", seeds="1", vary=ONE), "launcher=ray", f"address={address}"]
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr("stormlit.sweeps.launchers.ANSWER_SECONDS", 0.1)
            assert main(words) == 2  # somebody listens there, but not Ray
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"address={address}: no Ray answers there within" in told
    assert f"address={address}: no Ray answers there (Connection refused)" in told and not grid.exists()
    assert main([*command(tmp_path, vary=ONE), "launcher=ray", "gpus_per_cell=64"]) == 2  # a Ray of this machine alone
    assert "64 GPUs (gpus_per_cell), this machine has" in capsys.readouterr().err
    options = ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", *options],
        cwd="/",
        stdout=subprocess.DEVNULL,
    )
    over = threading.Event()
    killer = threading.Thread(target=kill_trainer, args=(grid / ONE_CELL, over))
    try:
        wait_for(address)
        killer.start()
        assert main(words) == 0, capsys.readouterr().err
        assert measured(result_of(grid / ONE_CELL)) == unbroken[ONE_CELL]
        assert (grid / ONE_CELL / "cell.log").read_text().count("\n--- ") == 1
    finally:
        over.set()
        head.terminate()
        head.wait(timeout=60)


def wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.1)


def kill_trainer(run: Path, over: threading.Event) -> None:
    """Kill whoever trains a run once it has a checkpoint."""
    while not over.wait(0.005):
        if list(run.glob("checkpoints/step-*/manifest.json")):
            return os.kill(holder(run / "lock"), signal.SIGKILL)


def holder(lock: Path) -> int:
    """The process that holds a lock, as the kernel lists it by the file's number."""
    inode = lock.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode:
            return int(fields[4])
    raise AssertionError(f"nobody holds {lock}")


@pytest.mark.slow
def test_a_job_of_slurm_trains_a_cell(tmp_path: Path, unbroken: dict[str, dict[str, Any]]) -> None:
    """By submitit's own stand-in for Slurm on one machine."""
    pytest.importorskip("submitit")
    words = [*command(tmp_path, seeds="1", vary=ONE), "launcher=slurm", "cluster=local"]
    assert main(words) == 0
    assert_each_once(tmp_path / "grid", {ONE_CELL: unbroken[ONE_CELL]}, done={})


@pytest.mark.parametrize(
    ("launcher", "module", "told"),
    [("ray", "ray", "pip install 'stormlit[ray]'"), ("slurm", "submitit", "pip install 'stormlit[slurm]'")],
)
def test_a_launcher_that_is_not_installed_is_told(
    launcher: str,
    module: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main([*command(tmp_path), f"launcher={launcher}"]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "grid").exists()


def test_slurm_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*command(tmp_path), "launcher=slurm"]) == 2
    assert "there is no Slurm here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["launcher=ray", "gpus_per_cell=1.5"], "gpus_per_cell=1.5: Ray hands out parts of one GPU, or whole ones"),
        (["launcher=slurm", "gpus_per_cell=0.5"], "gpus_per_cell=0.5: Slurm hands out whole GPUs"),
        (
            ["launcher=ray", "partition=gpu"],
            "launcher=ray has no option 'partition'; it has jobs, gpus_per_cell, retries, address",
        ),
        (["launcher=rai"], "launcher=rai does not exist (did you mean 'ray'?); choose one of processes, ray, slurm"),
    ],
)
def test_words_that_no_launcher_takes_are_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    pytest.importorskip("submitit")
    assert main([*command(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not (tmp_path / "grid").exists()
