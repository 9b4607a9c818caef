"""Training processes killed with SIGKILL at random moments, and started again until the run is done, lose nothing.

``benchmarks/kill_test.py`` does the same at more points.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from stormlit.cli import main
from test_resume import assert_same_run
from test_training_run import SMALL, newest, train

KILLS_PER_RUN = 4
BUDGET = ("loop.env_steps=96", "loop.warmup_steps=20")
ATARI = (
    "env.size=32",
    "env.atari.sticky_actions=0.25",
    "env.atari.noop_max=10",
    "env.max_episode_steps=40",
    "evaluation.episodes=1",
    "evaluation.num_envs=1",
)
VARIANTS = {
    "Catch": ("checkpoint.every=9",),
    "Catch, 3 environments, ring wrapped": ("checkpoint.every=9", "env.num_envs=3", "replay.capacity=30"),
    "Pong, sticky actions": ("env.game=Pong", *ATARI, "checkpoint.every=13"),
    "Breakout, sticky actions, 2 environments, ring wrapped": (
        "env.game=Breakout",
        *ATARI,
        "env.num_envs=2",
        "replay.capacity=40",
        "checkpoint.every=14",
    ),
}


def attempt(root: Path, words: tuple[str, ...], killed_after: float | None) -> int:
    """``train ... resume=auto`` in a forked process; returns its exit code, the negative signal if it was killed.

    killed_after: seconds; None lets it end.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(root.parent / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = main(["train", *SMALL, *BUDGET, *words, "resume=auto", f"run.dir={root}", "run.name=run"])
        finally:
            os._exit(code)
    if killed_after is not None:
        time.sleep(killed_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_again_and_again(root: Path, words: tuple[str, ...], kills: int, seconds: float, seed: int) -> int:
    """Kill so many attempts, each at a random moment within ``seconds``, then let one end; returns how many died."""
    root.mkdir(parents=True)
    chance = random.Random(seed)
    died = sum(attempt(root, words, chance.uniform(0, seconds)) == -signal.SIGKILL for _ in range(kills))
    assert attempt(root, words, None) == 0, (root.parent / "log").read_text()
    return died


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_again_and_again_is_as_never_killed(variant: str, tmp_path: Path) -> None:
    words = VARIANTS[variant]
    begun = time.monotonic()
    unbroken = train(tmp_path / "a", "run", *BUDGET, *words, "resume=auto")
    seconds = time.monotonic() - begun
    died = killed_again_and_again(tmp_path / "b" / "runs", words, KILLS_PER_RUN, 0.8 * seconds, seed=len(variant))
    assert died >= 1
    resumed = tmp_path / "b" / "runs" / "run"
    assert newest(resumed).name == "step-000000096"
    assert_same_run(unbroken, resumed)
