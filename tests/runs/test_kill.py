"""Training processes killed with SIGKILL at random moments, and started again until the run is done, lose nothing.

``STORMLIT_KILLS=13 python -m pytest -m slow tests/runs/test_kill.py`` kills each of them so often.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from recorded import catch
from stormlit.cli import main
from stormlit.demonstrations import write_npz
from training import SMALL, assert_same_run, newest, train

KILLS_PER_RUN = int(os.environ.get("STORMLIT_KILLS", "4"))
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
    "Breakout, sticky actions, 2 environments, ring wrapped": (
        "env.game=Breakout",
        *ATARI,
        "env.num_envs=2",
        "replay.capacity=40",
        "checkpoint.every=14",
    ),
    "MinAtar Breakout, 2 environments": (
        "env.id=MinAtar/Breakout-v1",
        "env.size=10",
        "env.channels=as_is",
        "env.max_episode_steps=1000",
        "env.num_envs=2",
        "checkpoint.every=14",
    ),
    "demonstrations, processes, a wrapped ring and overlap": (
        "env.num_envs=2",
        "env.isolation=process",
        "replay.capacity=40",
        "loop.overlap=true",
        "player.context=frames",
        "demonstrations.path=a.npz",
        "demonstrations.batch_size=2",
        "demonstrations.imagination_batch_size=3",
        "checkpoint.every=10",
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_again_and_again_is_as_never_killed(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random moments within the time that an unbroken run takes."""
    monkeypatch.chdir(tmp_path)
    write_npz(catch(40), tmp_path / "a.npz")
    words, chance, root = VARIANTS[variant], random.Random(len(variant)), tmp_path / "b" / "runs"
    begun = time.monotonic()
    unbroken = train(tmp_path / "a", "run", *BUDGET, *words, "resume=auto")
    seconds = 0.8 * (time.monotonic() - begun)
    root.mkdir(parents=True)
    ended = [attempt(root, words, chance.uniform(0, seconds)) for _ in range(KILLS_PER_RUN)]
    assert -signal.SIGKILL in ended
    assert attempt(root, words, None) == 0, (root.parent / "log").read_text()
    assert newest(root / "run").name == "step-000000096"
    assert_same_run(unbroken, root / "run")
