"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium
import hypothesis
import pytest

if TYPE_CHECKING:
    from stormlit.envs import EnvSettings

# Before torch is imported, and inherited by the processes that tests start.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
    os.environ.pop(variable, None)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# A shell's background jobs ignore the one, those under nohup the other, and what they start inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A loaded machine must not fail a property, and a failure must come back when the test runs again.
hypothesis.settings.register_profile("stormlit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("stormlit")

RunStormlit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_stormlit(tmp_path: Path) -> RunStormlit:
    """``run_stormlit(*words, cwd=tmp_path, timeout=300)``: the command line in a process of its own, output captured.

    timeout: seconds.  The exit code is not checked.
    """

    def run(*words: str, cwd: Path = tmp_path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stormlit", *words]
        return subprocess.run(
            command, cwd=cwd, timeout=timeout, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the module's ``trained`` for a test to change; not where it was trained, like a run that was moved."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "run"))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``unbroken(*words)``: a small run with these words that nothing interrupted, trained once for all tests."""
    from training import train

    return functools.cache(lambda *words: train(tmp_path_factory.mktemp("unbroken"), "run", *words))


@pytest.fixture
def short_or_long(monkeypatch: pytest.MonkeyPatch) -> EnvSettings:
    """An environment of half short and half long episodes, registered for one test."""
    from edge_envs import ShortOrLong
    from stormlit.envs import EnvSettings

    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("stormlit-test/ShortOrLong-v0", entry_point=ShortOrLong)
    return EnvSettings(game=None, id="stormlit-test/ShortOrLong-v0", size=8)


@pytest.fixture(scope="session")
def mlflow_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose database is created once: MLflow's migrations take seconds."""
    pytest.importorskip("mlflow")
    return tmp_path_factory.mktemp("runs with a space")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files first in which a test asks for more time than the others get."""
    usual = float(config.getini("timeout"))
    longest: dict[Path, float] = {}
    for item in items:
        mark = item.get_closest_marker("timeout")
        longest[item.path] = max(longest.get(item.path, usual), float(mark.args[0]) if mark else usual)
    items.sort(key=lambda item: -longest[item.path])
