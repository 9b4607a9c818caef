"""The proof that everything works together: STORM learns, in imagination only."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stormlit.envs import EnvSettings
from stormlit.envs.catch import BEST_RETURN
from stormlit.storm.evaluate import evaluate_baselines


@pytest.mark.slow
def test_storm_learns_catch_from_scratch(tmp_path: Path) -> None:
    words = ["train", "tiny", f"run.dir={tmp_path}", "run.name=learns", "tracking=csv", "seed=0"]
    # One thread is as fast as two at these sizes, and adds in the same order every time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "stormlit", *words], env=environment, check=True, timeout=600)

    # 100 greedy episodes, with seeds that no training episode had.
    (evaluation,) = (tmp_path / "learns" / "evaluation").glob("*.json")
    result = json.loads(evaluation.read_text())
    assert len(result["episodes"]) == 100
    settings = EnvSettings(game=None, id="stormlit/Catch-v0", size=16)
    (random,) = evaluate_baselines(["random"], settings, episodes=100, num_envs=5, seed=0)

    assert random.mean < 0.3 * BEST_RETURN
    assert result["mean"] >= 0.9 * BEST_RETURN


@pytest.mark.slow
def test_the_quickstart_shortened_beats_random_play(tmp_path: Path) -> None:
    """Two minutes of the quickstart on one thread, judged on 20 episodes whose seeds no training episode had."""
    words = ["train", "quickstart", f"run.dir={tmp_path}", "run.name=short", "tracking=csv", "seed=0"]
    words += ["loop.env_steps=4000", "evaluation.baselines=[random]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "stormlit", *words], env=environment, check=True, timeout=1800)

    # Seeds of evaluation are never those of training; the baseline plays the same ones.
    (file,) = (tmp_path / "short" / "evaluation").glob("step-*.json")
    agent = json.loads(file.read_text())
    assert len(agent["episodes"]) == 20
    settings = EnvSettings(game="UpNDown", size=32)
    (random,) = evaluate_baselines(["random"], settings, episodes=20, num_envs=5, seed=0)
    errors = math.hypot(agent["std"], random.std) / math.sqrt(20)
    assert agent["mean"] >= random.mean + 2.0 * errors
