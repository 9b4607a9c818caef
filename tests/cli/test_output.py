"""What commands print: an error once, by the first process or the launcher; and streams that close, fill up or lack
letters, over which training goes on and saves. The pipes and devices are real.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from stormlit.cli.output import LAUNCHERS_FILE, PATIENCE_SECONDS, tell
from stormlit.errors import (
    ConfigError,
    ElsewhereError,
    EnvironmentCrashError,
    StormlitError,
)
from training import SMALL, newest, status

COMMAND = [sys.executable, "-m", "stormlit"]


def started(root: Path, *words: str, **streams: Any) -> subprocess.Popen[str]:
    """A training in a process of its own, of 48 steps unless ``words`` say otherwise."""
    training = [*COMMAND, "train", *SMALL, f"run.dir={root}", "run.name=run", *words]
    return subprocess.Popen(training, stdin=subprocess.DEVNULL, text=True, **streams)


def assert_finished(root: Path, process: subprocess.Popen[str]) -> None:
    assert process.wait(120) == 0
    assert newest(root / "run").name == "step-000000048" and status(root / "run") == "FINISHED"


@pytest.mark.slow
def test_a_reader_that_leaves_ends_no_training(tmp_path: Path) -> None:
    """As in ``stormlit train ... 2>&1 | head -1``."""
    process = started(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None and "run: Catch" in process.stdout.readline()
    process.stdout.close()
    assert_finished(tmp_path, process)


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full"])
def test_a_stream_that_takes_nothing_ends_no_training(redirection: str, tmp_path: Path) -> None:
    words = [*SMALL, f"run.dir={tmp_path}", "run.name=run"]
    script = f'exec "$@" {redirection}'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *COMMAND, "train", *words], stderr=subprocess.PIPE, text=True
    )
    told = process.communicate(timeout=120)[1]
    assert_finished(tmp_path, process)
    assert "Traceback" not in told and "Exception ignored" not in told
    if redirection == ">/dev/full":
        assert told.splitlines()[-1] == "stormlit: the output could not be written (No space left on device)"


@pytest.mark.slow
def test_output_that_is_the_point_of_a_command_must_be_written() -> None:
    """And a reader that has seen enough, as ``head`` has, is no error."""
    for target, code, told in (
        ("/dev/full", 3, "stormlit: the output could not be written (No space left on device)\n"),
        ("/dev/null", 0, ""),
    ):
        with open(target, "w") as output:
            ended = subprocess.run([*COMMAND, "config", "tiny"], stdout=output, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (code, told)
    ended = subprocess.run(["bash", "-c", 'exec "$@" >&-', "bash", *COMMAND, "config", "tiny"], stderr=subprocess.PIPE)
    assert ended.returncode == 3 and b"the output could not be written" in ended.stderr
    process = subprocess.Popen([*COMMAND, "config", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(120), process.stderr.read()) == (0, "")


@pytest.mark.slow
def test_a_letter_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = started(tmp_path, "run.name=über", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    shown, told = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in told
    assert "\\xfcber" in shown and (tmp_path / "über" / "run.json").is_file()


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_a_training_which_saves(tmp_path: Path) -> None:
    terminal, theirs = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # or there is no room for a bar

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    words = [*SMALL, f"run.dir={tmp_path}", "run.name=run", "loop.env_steps=100000", "checkpoint.every=100000"]
    process = subprocess.Popen(
        [*COMMAND, "train", *words], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=take_terminal
    )
    os.close(theirs)
    try:
        shown = b""
        while b"train, return" not in shown:
            shown += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(120) == 128 + signal.SIGHUP
    finally:
        process.kill()
    run = tmp_path / "run"
    assert newest(run).name > "step-000000024" and status(run) == "KILLED"


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept."""
    slept: list[float] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(LAUNCHERS_FILE, raising=False)
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_a_rank_that_nothing_has_launched_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waited: list[float]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")  # left over in the environment of a job
    tell(ConfigError("no"))
    assert capsys.readouterr().err == "stormlit: error: no\n" and waited == []


@pytest.mark.parametrize(
    ("rank", "error", "waits"),
    [
        ("0", ConfigError("ü"), []),
        ("1", ConfigError("ü"), [PATIENCE_SECONDS]),
        ("1", EnvironmentCrashError("ü"), []),
        # The others only know that some process has failed, and let one that found what nobody else did speak first.
        ("0", ElsewhereError("ü"), [2 * PATIENCE_SECONDS]),
    ],
)
def test_a_launched_process_leaves_it_to_the_launcher(
    rank: str,
    error: StormlitError,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waited: list[float],
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv(LAUNCHERS_FILE, str(tmp_path / "error.json"))
    tell(error)
    assert json.loads((tmp_path / "error.json").read_text())["message"] == "stormlit: error: ü"
    assert capsys.readouterr().err == "" and waited == waits


def test_it_is_printed_where_the_launchers_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waited: list[float]
) -> None:
    monkeypatch.setenv(LAUNCHERS_FILE, str(tmp_path / "gone" / "error.json"))
    tell(ConfigError("no"))
    assert capsys.readouterr().err == "stormlit: error: no\n"
