"""Updating while the environments step."""

from __future__ import annotations

from pathlib import Path

import pytest

import stormlit.storm.loop
from stormlit.cli import main
from stormlit.storm.training import Training
from test_training_run import SMALL


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
