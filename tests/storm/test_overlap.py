"""Updating while the environments step."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
import torch

import faulty_envs
import stormlit.storm.loop
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.storm.training import Training
from training import SMALL


def test_overlapping_updates_know_all_but_the_newest_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the replay buffer at each update of the world model: the same, but for the newest step's updates."""
    held: dict[bool, list[tuple[int, int]]] = {}
    for overlap in (False, True):
        seen = held.setdefault(overlap, [])

        def noted(training: Training, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((training.progress.env_steps, training.replay.rows))

        monkeypatch.setattr(stormlit.storm.loop, "fit_world_model", noted)
        monkeypatch.setattr(stormlit.storm.loop, "improve_agent", lambda training: None)
        words = [f"run.dir={tmp_path}", f"run.name=overlap-{overlap}", f"loop.overlap={str(overlap).lower()}"]
        assert main(["train", *SMALL, *words, "evaluation.baselines=[]"]) == 0
    assert held[True] == held[False][:-1]


@pytest.mark.parametrize(("error", "ended"), [(MemoryError, 1), (KeyboardInterrupt, 0)])
def test_a_step_is_ended_before_it_is_saved_but_not_after_a_second_interrupt(
    error: type[BaseException], ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then nothing is saved, and an environment may be hanging."""

    def fail(training: Training) -> None:
        raise error

    config = compose(SMALL[:1], [*SMALL[1:], "tracking=none", "loop.overlap=true", "loop.warmup_steps=8"])
    training = build_training(config, make_fabric(config))
    with closing(training.envs):
        monkeypatch.setattr(stormlit.storm.loop, "fit_world_model", fail)
        with pytest.raises(error):
            stormlit.storm.loop.fit(training, lambda: None)
        assert training.replay.rows == training.progress.env_steps == 9 + ended


@pytest.mark.slow
def test_processes_step_while_updates_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates wait for steps whose outcome nobody has asked for yet; what is learned does not depend on it."""
    steps = tmp_path / "steps"
    monkeypatch.setenv(faulty_envs.STEPS, str(steps))
    monkeypatch.setenv("PYTHONPATH", str(Path(faulty_envs.__file__).parent))
    fit_world_model = stormlit.storm.loop.fit_world_model
    words = ["env.id=faulty_envs:Counted-v0", "env.num_envs=2", "loop.overlap=true", "evaluation.baselines=[]"]
    waited = 0

    def waits(training: Training) -> None:
        nonlocal waited
        deadline = time.monotonic() + 60
        while steps.stat().st_size < training.progress.env_steps + 2:
            assert time.monotonic() < deadline, "no environment steps while an update is made"
            time.sleep(0.01)
        waited += 1
        fit_world_model(training)

    weights = {}
    for isolation in ("none", "process"):
        steps.write_bytes(b"")
        with monkeypatch.context() as patch:
            if isolation == "process":
                patch.setattr(stormlit.storm.loop, "fit_world_model", waits)
            output = [f"run.dir={tmp_path}", f"run.name={isolation}", f"env.isolation={isolation}"]
            assert main(["train", *SMALL, *words, *output]) == 0
        (newest,) = (tmp_path / isolation / "checkpoints").glob("step-*48")
        weights[isolation] = torch.load(newest / "weights.pt", weights_only=True)
    assert waited > 10
    torch.testing.assert_close(weights["process"], weights["none"], rtol=0, atol=0)
