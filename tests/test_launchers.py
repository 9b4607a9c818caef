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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stormlit.cli import main
from stormlit.runs.ablation.cells import cells_of
from stormlit.runs.ablation.grid import read_grid
from test_ablation import VARY, WORDS, command, result_of
from test_result import measured


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


def assert_each_once(grid: Path, expected: dict[str, dict[str, Any]]) -> None:
    """Every cell has the result it should have, and came to its end in one of its parts only."""
    attempts = json.loads((grid / "grid.json").read_text())["attempts"]
    for name, result in expected.items():
        assert measured(result_of(grid / name)) == result, name
        log = (grid / name / "cell.log").read_text()
        assert log.count("look first") == 1 and log.count("\n--- ") + 1 == attempts[name], log


def kill_when(condition: Callable[[], bool], words: list[str], cwd: Path) -> None:
    """Start the command in a process group of its own, and kill all of that once the condition holds."""
    with (cwd / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stormlit", *words], cwd=cwd, stdout=log, stderr=log, start_new_session=True
        )
    while not condition():
        assert process.poll() is None, (cwd / "log").read_text()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_grid_killed_three_times_is_as_never_killed(tmp_path: Path, unbroken: dict[str, dict[str, Any]]) -> None:
    grid, words = tmp_path / "grid", command(tmp_path, "jobs=2")

    def checkpoints(least: int) -> int:
        found = grid.glob("*/checkpoints/step-*/manifest.json")
        return len({file.parents[2] for file in found if int(file.parent.name[-9:]) >= least})

    def finished() -> int:
        return len(list(grid.glob("*/result.json")))

    kill_when(lambda: checkpoints(30) >= 1, words, tmp_path)
    kill_when(lambda: finished() >= 1, words, tmp_path)
    kill_when(lambda: checkpoints(6) >= 3, words, tmp_path)
    assert finished() < 4
    again = subprocess.run([sys.executable, "-m", "stormlit", *words], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert_each_once(grid, unbroken)
    assert "num_layers_2" in again.stdout and "(2 seeds)" in again.stdout
    assert (grid / "report" / "report.html").exists()
    # Given once more, nothing is left to do.
    before = {file: file.stat().st_mtime_ns for file in grid.glob("*/result.json")}
    assert main(words) == 0
    assert before == {file: file.stat().st_mtime_ns for file in grid.glob("*/result.json")}


@pytest.mark.slow
def test_a_signal_stops_all_cells_with_their_state_saved(tmp_path: Path, unbroken: dict[str, dict[str, Any]]) -> None:
    grid, words = tmp_path / "grid", command(tmp_path, "jobs=2", seeds="1")
    process = subprocess.Popen(
        [sys.executable, "-m", "stormlit", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while len({file.parents[2] for file in grid.glob("*/checkpoints/step-*/manifest.json")}) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGINT and "the same command goes on" in told, told
    for log in grid.glob("*/cell.log"):
        assert "stopped by SIGTERM after step" in log.read_text() or (log.parent / "result.json").exists()
    assert main(words) == 0
    assert_each_once(grid, {name: result for name, result in unbroken.items() if name.endswith("s0")})


@pytest.mark.slow
def test_ray_begins_a_lost_worker_s_cell_again(
    tmp_path: Path,
    unbroken: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A head of its own, with a worker killed while it trains; and an address at which nothing answers."""
    ray = shutil.which("ray", path=str(Path(sys.executable).parent)) or pytest.skip("Ray is not installed")
    grid = tmp_path / "grid"
    (tmp_path / "own.yaml").write_text("checkpoint: {every: 6}")  # looked for in the folder of the command
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        words = [*command(tmp_path, "own.yaml", seeds="1"), "launcher=ray", f"address={address}"]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("stormlit.runs.ablation.ray_launcher.ANSWER_SECONDS", 0.1)
        assert main(words) == 2  # somebody listens there, but not Ray
    assert main(words) == 2
    told = capsys.readouterr().err
    assert f"address={address}: no Ray answers there within" in told
    assert f"address={address}: no Ray answers there (Connection refused)" in told and not grid.exists()
    options = ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", f"--port={address.rpartition(':')[2]}", *options],
        cwd="/",
        stdout=subprocess.DEVNULL,
    )
    try:
        process = start_when_up(words, tmp_path, address)
        started = grid / "num_layers_1-Catch-s0"
        while not list(started.glob("checkpoints/step-*/manifest.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        os.kill(holder(started / "lock"), signal.SIGKILL)
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
        for name in ("num_layers_1-Catch-s0", "num_layers_2-Catch-s0"):
            assert measured(result_of(grid / name)) == unbroken[name]
        assert (started / "cell.log").read_text().count("\n--- ") == 1
    finally:
        head.terminate()
        head.wait(timeout=60)


def start_when_up(words: list[str], cwd: Path, address: str) -> subprocess.Popen[str]:
    host, _, port = address.rpartition(":")
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            break
        time.sleep(0.1)
    return subprocess.Popen(
        [sys.executable, "-m", "stormlit", *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def holder(lock: Path) -> int:
    """The process that holds a lock, as the kernel lists it by the file's number."""
    inode = lock.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and int(fields[5].rpartition(":")[2]) == inode:
            return int(fields[4])
    raise AssertionError(f"nobody holds {lock}")


@pytest.mark.slow
def test_slurm_s_jobs_train_cells(tmp_path: Path, unbroken: dict[str, dict[str, Any]]) -> None:
    """By submitit's own stand-in for Slurm on one machine."""
    pytest.importorskip("submitit")
    words = [*command(tmp_path, seeds="1"), "launcher=slurm", "cluster=local"]
    done = subprocess.run([sys.executable, "-m", "stormlit", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_each_once(tmp_path / "grid", {name: result for name, result in unbroken.items() if name.endswith("s0")})


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
