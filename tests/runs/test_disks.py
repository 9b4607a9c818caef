"""Disks that are full, read-only, or refuse large files: training goes on, the last good checkpoint stays, and a last
checkpoint that cannot be written is an error. The errors are the kernel's.
"""

from __future__ import annotations

import contextlib
import csv
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stormlit.storm.loop
from stormlit.cli import main
from stormlit.runs.checkpoint import list_checkpoints, verify
from stormlit.runs.directory import RunDirectory
from stormlit.storm.training import Training
from training import SMALL, differences, logged, newest, read, resume, rows, status, train

WORDS = ("checkpoint.every=6", "checkpoint.keep=2")
Disk = tuple[Path, Callable[[], object], Callable[[], object]]


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Disk]:
    """A folder, and functions after which files may have at most 5 kB, and any size again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield (
        tmp_path,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["full", "read-only"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A small file system of its own, and functions that fill it (or make it read-only) and undo that."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount file systems")
    ballast = place / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 10, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def forbid() -> None:
        # A second mount on top of the first, since one with files open for writing cannot be made read-only.
        subprocess.run(["mount", "--bind", place, place], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)

    try:
        if request.param == "full":
            yield place, fill, ballast.unlink
        else:
            yield place, forbid, lambda: subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["umount", "--recursive", place], check=True)


@contextlib.contextmanager
def trouble(between: tuple[int, int], begin: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """Begin it before the step after ``between[0]`` environment steps, and end it before that after ``between[1]``."""
    collect = stormlit.storm.loop.collect

    def collect_in_trouble(training: Training) -> None:
        if training.progress.env_steps == between[0]:
            begin()
        if training.progress.env_steps == between[1]:
            end()
        collect(training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stormlit.storm.loop, "collect", collect_in_trouble)
        yield


def assert_whole(run: Path) -> None:
    checkpoints = list_checkpoints(RunDirectory(run))
    assert checkpoints
    for folder in checkpoints:
        verify(folder, replay=True)
    left = [path for part in ("checkpoints", "replay") for path in (run / part).rglob("*.tmp")]
    assert left == []


def assert_same_weights_and_rows(first: Path, second: Path) -> None:
    weights = [read(newest(run) / "weights.pt") for run in (first, second)]
    assert list(differences(*weights)) == []
    held, held_too = rows(first), rows(second)
    assert all((held[name] == held_too[name]).all() for name in held)


def test_training_goes_on_without_checkpoints_for_a_while(limited: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    place, begin, end = limited
    unbroken = train(place / "a", "run", *WORDS)
    capsys.readouterr()
    with trouble((26, 40), begin, end):
        run = train(place / "b", "run", *WORDS)
    told = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert len(told) == 2 and all("File too large" in line and "training goes on" in line for line in told)
    assert "step 30" in told[0] and "step 36" in told[1]
    metrics = logged(run)
    assert metrics[24, "progress/failed_checkpoints"] == 0 and metrics[40, "progress/failed_checkpoints"] == 2
    assert_whole(run)
    assert_same_weights_and_rows(unbroken, run)
    resume(run, 52)
    resume(unbroken, 52)
    assert_same_weights_and_rows(unbroken, run)


def test_metrics_that_cannot_be_written_end_no_training(limited: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor are they lost: they are in the file once it can grow again, and there once."""
    place, begin, end = limited
    words = (*WORDS, "loop.log_every_env_steps=2", "evaluation.every_env_steps=16", "evaluation.baselines=[random]")
    unbroken = train(place / "a", "run", *words)
    capsys.readouterr()
    with trouble((26, 40), begin, end):
        run = train(place / "b", "run", *words)
    told = capsys.readouterr().err
    assert "the metrics of step 30 could not be written" in told
    assert "the returns of step 32 could not be written" in told
    assert logged(unbroken).keys() == logged(run).keys()


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    limited: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    place, begin, end = limited
    capsys.readouterr()
    with trouble((26, -1), begin, end):
        assert main(["train", *SMALL, *WORDS, f"run.dir={place / 'b'}", "run.name=run"]) == 3
    end()
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("stormlit: error: ")]
    assert len(errors) == 1 and "step 48" in errors[0] and "File too large" in errors[0] and captured.out == ""
    run = place / "b" / "run"
    assert status(run) == "FAILED" and newest(run).name == "step-000000024"
    assert_whole(run)
    resume(run, 48)
    assert_same_weights_and_rows(train(place / "a", "run", *WORDS), run)


@pytest.mark.slow
def test_a_disk_of_its_own_in_trouble(disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics, videos and evaluations are on it too; what has been logged is there once it can be written again."""
    place, begin, end = disk
    words = (*WORDS, "loop.media_every_env_steps=16", "evaluation.every_env_steps=16")
    unbroken = train(tmp_path / "a", "run", *words)
    capsys.readouterr()
    with trouble((26, 40), begin, end):
        run = train(place, "run", *words)
    told = [line for line in capsys.readouterr().err.splitlines() if "could not be written" in line]
    assert sum("checkpoint" in line for line in told) == 2
    assert all(any(what in line for line in told) for what in ("the pictures of step 32", "the evaluation of step 32"))
    assert_whole(run)
    assert_same_weights_and_rows(unbroken, run)
    expected = {place for place in logged(unbroken) if place[1] != "dream/psnr_imagined"}
    assert expected <= logged(run).keys()
    with (run / "metrics.csv").open() as file:
        places = [(row["step"], row["key"]) for row in csv.DictReader(file)]
    assert len(places) == len(set(places))
