"""What went wrong is said by the first process, or left to the launcher that ends its summary with it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from stormlit.cli.error_output import LAUNCHERS_FILE, PATIENCE_SECONDS, tell
from stormlit.errors import ConfigError, ElsewhereError, EnvironmentCrashError, StormlitError


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept."""
    slept: list[float] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv(LAUNCHERS_FILE, raising=False)
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_a_single_process_prints_it_at_once(capsys: pytest.CaptureFixture[str], waited: list[float]) -> None:
    tell(ConfigError("no"))
    assert capsys.readouterr().err == "stormlit: error: no\n" and waited == []


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LAUNCHERS_FILE, str(tmp_path / "gone" / "error.json"))
    tell(ConfigError("no"))
    assert capsys.readouterr().err == "stormlit: error: no\n"
