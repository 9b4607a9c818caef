"""The bundled configurations without pixels learn what they are for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "env_steps", "bar"),
    [
        ("cartpole", 4000, 120.0),  # random play: 22
        ("pendulum", 5000, -850.0),  # random play: -1200
    ],
)
def test_an_example_learns_from_scratch(name: str, env_steps: int, bar: float, tmp_path: Path) -> None:
    """Shorter than the configuration says, and with a bar far above random play."""
    words = [name, f"loop.env_steps={env_steps}", "evaluation.episodes=20", "evaluation.baselines=[]"]
    output = [f"run.dir={tmp_path}", "run.name=learns", "tracking=csv", "loop.media_every_env_steps=0"]
    # One thread is as fast as two at these sizes, and adds in the same order every time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stormlit", "train", *words, *output]
    subprocess.run(command, env=environment, check=True, timeout=900)
    (evaluation,) = (tmp_path / "learns" / "evaluation").glob("*.json")
    assert json.loads(evaluation.read_text())["mean"] >= bar
