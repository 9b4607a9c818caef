"""Real, reconstructed and imagined frames of one window."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

from small import random_batch, small_world_model
from stormlit import registry
from stormlit.analysis.dream import Dream, Views, dream, dream_length, dream_window
from stormlit.cli import main
from stormlit.storm.replay import ReplayBuffer
from training import train

SEQUENCE_MODELS = registry.names("sequence_model")


def frames_of(seen: Dream) -> Views:
    assert seen.frames is not None
    return seen.frames


@pytest.mark.parametrize("sequence_model", SEQUENCE_MODELS)
@pytest.mark.parametrize(("context_length", "starts"), [(1, ()), (4, ((0, 3), (0, 4))), (9, ((0, 7),))])
def test_a_dream_has_the_windows_length_and_begins_as_the_reconstruction(
    sequence_model: str, context_length: int, starts: tuple[tuple[int, int], ...]
) -> None:
    window = random_batch(rows=1, length=10, starts=starts)
    torch.manual_seed(0)
    seen = dream(small_world_model(sequence_model), window, context_length)
    assert seen.context_length == context_length
    assert seen.vector is None
    for frames in (frames_of(seen).real, frames_of(seen).reconstructed, frames_of(seen).imagined):
        assert frames.shape == (10, 16, 16, 3) and frames.dtype == np.uint8
    for numbers in (seen.action, seen.reward, seen.terminated, seen.predicted_reward, seen.end_probability):
        assert numbers.shape == (10,)
    assert np.array_equal(frames_of(seen).imagined[:context_length], frames_of(seen).reconstructed[:context_length])
    assert (frames_of(seen).imagined[context_length:] != frames_of(seen).reconstructed[context_length:]).any()
    assert np.array_equal(frames_of(seen).real, window.obs[0].permute(0, 2, 3, 1).numpy())
    assert np.isfinite(seen.predicted_reward).all()
    assert ((seen.end_probability >= 0) & (seen.end_probability <= 1)).all()


@pytest.mark.parametrize("sequence_model", SEQUENCE_MODELS)
def test_what_was_before_an_episodes_start_does_not_matter(sequence_model: str) -> None:
    world_model = small_world_model(sequence_model)
    with torch.no_grad():
        for parameter in world_model.latent.parameters():
            parameter.mul_(50.0)  # latents that tell frames apart
    window = random_batch(rows=1, length=10, starts=((0, 3),))
    other = random_batch(rows=1, length=10, starts=((0, 3),))
    other.action[:, :3] = 2 - other.action[:, :3]
    other.obs[:, :3] = 255 - other.obs[:, :3]
    seen = []
    for experience in (window, other):
        torch.manual_seed(0)
        seen.append(dream(world_model, experience, context_length=6))
    assert not np.array_equal(frames_of(seen[0]).reconstructed[:3], frames_of(seen[1]).reconstructed[:3])
    assert np.array_equal(frames_of(seen[0]).imagined[3:], frames_of(seen[1]).imagined[3:])
    np.testing.assert_allclose(seen[0].predicted_reward[3:], seen[1].predicted_reward[3:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sequence_model", SEQUENCE_MODELS)
def test_a_dream_obeys_the_actions_really_taken_and_nothing_later(sequence_model: str) -> None:
    """Frames after the context do not reach the imagined ones; actions do, from the step after them."""
    world_model = small_world_model(sequence_model)
    window, later_frames, other_action = (random_batch(rows=1, length=10) for _ in range(3))
    later_frames.obs[:, 4:] = 255 - later_frames.obs[:, 4:]
    other_action.action[:, 6] = 2 - other_action.action[:, 6] + (other_action.action[:, 6] == 1).long()
    seen = []
    for experience in (window, later_frames, other_action):
        torch.manual_seed(0)
        seen.append(dream(world_model, experience, context_length=4))
    assert np.array_equal(frames_of(seen[0]).imagined, frames_of(seen[1]).imagined)
    assert np.array_equal(seen[0].predicted_reward, seen[1].predicted_reward)
    assert np.array_equal(frames_of(seen[0]).imagined[:7], frames_of(seen[2]).imagined[:7])
    assert seen[0].predicted_reward[6] != seen[2].predicted_reward[6]


@pytest.mark.parametrize("sequence_model", SEQUENCE_MODELS)
def test_a_dream_is_as_long_as_the_sequence_model_allows(sequence_model: str) -> None:
    world_model = small_world_model(sequence_model)
    longest = world_model.sequence_model.max_length
    length = dream_length(world_model, 64)
    assert 2 <= length <= (longest or length)
    assert dream_length(world_model, 5) == 5  # no step beyond what the windows taught
    seen = dream(world_model, random_batch(rows=1, length=length), context_length=64)
    assert seen.context_length == length - 1 and len(frames_of(seen).imagined) == length  # at least one is imagined


def test_a_window_is_the_longest_stretch_of_one_episode() -> None:
    replay = ReplayBuffer(100, 1, (16, 16, 3), device=torch.device("cpu"), seed=0)
    for step in range(40):
        first = step % 12 == 0
        frame = np.full((1, 16, 16, 3), step, np.uint8)
        replay.append(frame, np.zeros(1, np.int64), np.zeros(1, np.float32), np.zeros(1, bool), np.array([first]))
    state = replay.generator.get_state()
    window = dream_window(replay, 8, torch.device("cpu"), seed=1)
    assert window.action.shape == (1, 8) and not window.is_first[:, 1:].any()
    assert torch.equal(window.obs, dream_window(replay, 8, torch.device("cpu"), seed=1).obs)
    assert torch.equal(replay.generator.get_state(), state)
    # Longer than any episode: the first of those of twelve steps in full.
    whole = dream_window(replay, 64, torch.device("cpu"), seed=1)
    assert whole.obs[0, :, 0, 0, 0].tolist() == list(range(12))


@pytest.mark.slow
def test_the_command_writes_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "dreamer")
    capsys.readouterr()
    reference = ["dream", "dreamer", f"run.dir={tmp_path}"]
    assert main([*reference, "--dreams", "1"]) == 0
    written = Path(capsys.readouterr().out.split()[-1])
    assert written.parent == run / "media" and written.stat().st_size > 1000
    chosen = tmp_path / "folder" / "mine.gif"
    assert main([*reference, "--dreams", "2", "-o", str(chosen)]) == 0
    assert str(chosen) in capsys.readouterr().out
    frames = imageio.imread(chosen)
    assert len(frames) >= 2 * 2
    for words, told in ((["--dreams", "0"], "--dreams=0"), (["-o", str(tmp_path / "mine.avi")], "mine.avi")):
        assert main([*reference, *words]) == 2
        refused = capsys.readouterr().err
        assert len(refused.splitlines()) == 1 and told in refused
