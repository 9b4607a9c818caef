"""What is measured of a world model: hand-worked numbers, and a whole diagnosis of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from small import small_agent, small_world_model
from stormlit.analysis.diagnosis import (
    calibration,
    detection,
    dream_returns,
    end_quality,
    latent_use,
    newest_diagnosis,
    open_loop_errors,
    read_windows,
    realised_returns,
    reward_quality,
    value_quality,
    windows,
)
from stormlit.analysis.dream import Dream, Views
from stormlit.cli import main
from stormlit.storm.replay import ReplayRows
from training import SMALL


def rows(reward: list[float], ends: list[int] = (), firsts: list[int] = (0,)) -> ReplayRows:  # type: ignore[assignment]
    """Steps of one environment with 16x16 frames that show the step's number."""
    length = len(reward)
    at = torch.arange(length).unsqueeze(1)
    return ReplayRows(
        obs=at.view(length, 1, 1, 1, 1).expand(length, 1, 16, 16, 3).to(torch.uint8),
        action=torch.zeros(length, 1, dtype=torch.long),
        reward=torch.tensor(reward).unsqueeze(1),
        terminated=torch.isin(at, torch.tensor(list(ends), dtype=torch.long)),
        is_first=torch.isin(at, torch.tensor(list(firsts), dtype=torch.long)),
    )


def film(*values: float) -> np.ndarray:
    """Frames of 2x2 pixels, of which one moves: its value, in [0, 1]."""
    frames = np.zeros((len(values), 2, 2, 3), np.uint8)
    frames[:, 0, 0] = np.round(np.array(values) * 255)[:, None]
    return frames


def test_open_loop_errors_by_hand() -> None:
    found = open_loop_errors([dream_of(frames=Views(film(0.0, 1.0, 0.0), film(0.0, 1.0, 0.0), film(0.0, 1.0, 1.0)))])
    assert found["horizon"] == [1, 2] and found["windows"] == [1, 1]
    assert found["imagined"] == pytest.approx([0.0, 0.25]) and found["repeated"] == pytest.approx([0.25, 0.0])
    assert found["imagined_moving"] == pytest.approx([0.0, 1.0]) and found["reconstructed"] == pytest.approx([0, 0])


def test_without_an_image_vectors_are_compared_in_symlog() -> None:
    real, imagined = (np.array([[0.0, 0.0], [x, 0.0], [0.0, 0.0]], np.float32) for x in (np.e - 1, 0.0))
    found = open_loop_errors([dream_of(vector=Views(real, real, imagined))])
    assert found["imagined"] == pytest.approx([0.5, 0.0]) and found["imagined_moving"] == pytest.approx([1.0, 0.0])
    assert found["reconstructed"] == [0.0, 0.0]


def dream_of(frames: Views | None = None, vector: Views | None = None) -> Dream:
    nothing = np.zeros(3, np.float32)
    return Dream(
        frames=frames,
        vector=vector,
        action=np.zeros(3, np.int64),
        reward=nothing,
        terminated=nothing,
        predicted_reward=nothing,
        end_probability=nothing,
        context_length=1,
    )


def test_rewards_and_ends_are_told_by_hand() -> None:
    real, predicted = np.array([0.0, 1.0, -1.0, 0.0]), np.array([0.6, 0.9, -0.2, 0.1])
    found = reward_quality(predicted, real)
    assert (found["threshold"], found["told"], found["true"]) == (0.5, 2, 2)
    assert found["precision"] == 0.5 and found["recall"] == 0.5
    assert found["mean_absolute_error"] == pytest.approx((0.6 + 0.1 + 0.8 + 0.1) / 4)
    ends = end_quality(np.array([0.9, 0.2, 0.95]), np.array([True, False, False]))
    assert ends["precision"] == 0.5 and ends["recall"] == 1.0
    assert ends["brier_score"] == pytest.approx((0.01 + 0.04 + 0.9025) / 3)
    assert ends["calibration"] == [
        {"predicted": 0.2, "real": 0.0, "count": 1},
        {"predicted": pytest.approx(0.925), "real": 0.5, "count": 2},
    ]
    nothing = reward_quality(np.array([0.3]), np.array([0.0]))
    assert nothing["precision"] is None and nothing["recall"] is None and nothing["threshold"] is None
    assert detection(np.array([False]), np.array([True]))["recall"] == 0.0
    assert calibration(np.array([1.0]), np.array([3.0]), np.array([0.0, 1.0]))[0]["count"] == 1  # the last edge too


def test_realised_returns_by_hand() -> None:
    """An end closes a sum; an episode that a limit cut off, and the last one, have none."""
    seen = rows([1.0, 2.0, 1.0, 1.0, 3.0, 1.0], ends=[1, 4], firsts=[0, 2, 3, 5])
    found = realised_returns(seen, gamma=0.5).squeeze(1)
    assert found[[0, 1, 3, 4]].tolist() == [2.0, 2.0, 2.5, 3.0] and found[[2, 5]].isnan().all()


def test_values_are_held_against_returns() -> None:
    found = value_quality(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0]))
    assert found["bias"] == 1.0 and found["root_mean_squared_error"] == 1.0
    assert found["correlation"] == pytest.approx(1.0)
    assert value_quality(np.ones(3), np.arange(3.0))["correlation"] is None
    assert value_quality(np.ones(1), np.ones(1)) == {"steps": 1}


def test_windows_cut_each_environments_steps_in_order() -> None:
    one = rows([float(step) for step in range(5)])
    two = ReplayRows(*(torch.cat([tensor, tensor + 10 if tensor.dtype != torch.bool else tensor], dim=1)
                       for tensor in one.tensors()))  # fmt: skip
    batch = windows(two, 2)
    assert batch.reward.tolist() == [[0, 1], [10, 11], [2, 3], [12, 13]]
    assert batch.obs.shape == (4, 2, 3, 16, 16) and batch.obs[3, 1, 0, 0, 0] == 13


def test_returns_outside_the_dream_stop_at_an_end_and_need_the_whole_horizon() -> None:
    world_model, agent = small_world_model().eval(), small_agent().eval()
    # Contexts of 1 step, horizons of 2: steps 0-2, 3-5, 6-8. The second ends within its context, the third is cut off.
    seen = rows([9.0, 1.0, 2.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0], ends=[1, 3], firsts=[0, 2, 4, 8])
    found = dream_returns(world_model, agent, seen, context_length=1, horizon=2, from_posterior=False)
    assert found["contexts"] == 1 and found["outside"]["mean"] == 1.0  # the reward of 2 is of the next episode
    found = dream_returns(world_model, agent, seen, context_length=1, horizon=2, from_posterior=True)
    assert found["contexts"] == 3
    assert found["outside"]["mean"] == pytest.approx((9 + agent.gamma + 9 + 9 + agent.gamma) / 3)
    inside, outside = found["inside"]["mean"], found["outside"]["mean"]
    assert found["difference"]["mean"] == pytest.approx(inside - outside)


def test_windows_are_read_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    world_model, agent = small_world_model().eval(), small_agent().eval()
    batch = windows(rows([0.0] * 12, firsts=[0, 5]), 3)
    monkeypatch.setattr(world_model, "sample_posterior", lambda obs: torch.ones(*obs.shape[:2], world_model.latent_dim))
    whole = read_windows(world_model, agent, batch)
    monkeypatch.setattr("stormlit.analysis.diagnosis.AT_ONCE", 1)
    parts = read_windows(world_model, agent, batch)
    for name, values in whole.items():
        torch.testing.assert_close(values, parts[name], equal_nan=True)
    assert whole["kl"].isnan().tolist() == [[False, False, True], [False, True, True], *[[False, False, True]] * 2]
    use = latent_use(world_model, whole)
    assert use["kl"] == pytest.approx(float(whole["kl"].nanmean())) and 1.0 <= use["codes_used"] <= use["codes"]


@pytest.mark.slow
def test_a_run_is_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, f"run.dir={tmp_path}", "run.name=run"]
    assert main(["train", *words, "tracking=mlflow"]) == 0
    capsys.readouterr()
    assert main(["diagnose", "run", f"run.dir={tmp_path}", "--steps", "200"]) == 0
    told = capsys.readouterr().out
    found = newest_diagnosis(tmp_path / "run")
    assert found is not None and found["steps"] == 200 and "open loop" in told and "inside its dream" in told
    [file] = (tmp_path / "run" / "diagnosis").glob("*.json")
    assert json.loads(file.read_text()) == found and file.with_suffix(".png").is_file()
    assert len(list((tmp_path / "artifacts").rglob("diagnosis/step-*"))) == 2
    assert main(["diagnose", "run", f"run.dir={tmp_path}", "--steps", "3"]) == 2
    assert "--steps=3: expected at least" in capsys.readouterr().err
