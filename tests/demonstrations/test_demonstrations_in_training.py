"""Demonstrations beside real experience: their share of every batch, the rules they follow, and exact resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stormlit.storm.loop
from recorded import CATCH, as_official, catch, counted, write_pickle
from stormlit.config.compose import compose
from stormlit.data import Batch
from stormlit.demonstrations import DemonstrationBuffer, Origin, write_npz
from stormlit.envs import EnvSettings, VectorEnv, resized_image
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.storm.learner import Update
from training import SMALL, assert_same_run, logged, newest, read, refusal, refused_training, resume, train


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One file of each format, of Catch."""
    folder = tmp_path_factory.mktemp("demonstrations")
    write_npz(catch(40), folder / "a.npz")
    return [folder / "a.npz", write_pickle(folder / "b.pkl", as_official(catch(30, seed=1)))]


def mixed(files: list[Path]) -> str:
    return f"demonstrations.path=[{','.join(map(str, files))}]"


def buffer_of(files: list[Path], settings: EnvSettings = CATCH, **changes: Any) -> DemonstrationBuffer:
    options: dict[str, Any] = {"shortest": 8, "device": torch.device("cpu"), "seed": 0, "mark_episode_starts": True}
    return DemonstrationBuffer(files, settings, VectorEnv(settings, seed=0), **{**options, **changes})


def batches_of(config_words: list[str], root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what each module is trained on in one update, demonstrations marked by frames that are all 255."""
    config = compose(["tiny"], [*SMALL[1:], "tracking=none", *config_words])
    fabric = make_fabric(config)
    training = build_training(config, fabric)
    assert training.experience.demonstrations is not None
    training.experience.demonstrations.storage.storage.obs.fill_(255)
    while training.replay.rows < 20:
        training.collector.step(training.collector.select_action(random=True))
    seen: list[Batch] = []

    def update(batch: Batch, done: float) -> Update:
        seen.append(batch)
        return Update({}, torch.tensor(True))

    monkeypatch.setattr(training, "imagine", lambda contexts: contexts)
    monkeypatch.setattr(training.world_model_learner, "update", update)
    monkeypatch.setattr(training.agent_learner, "update", update)
    monkeypatch.setattr(training.agent, "update_slow_critic", lambda _: None)
    stormlit.storm.loop.fit_world_model(training)
    stormlit.storm.loop.improve_agent(training)
    shapes = []
    for batch in seen:
        demonstrated = (batch.obs == 255).flatten(1).all(1)
        rows = len(demonstrated) - int(demonstrated.sum())
        assert not demonstrated[:rows].any() and demonstrated[rows:].all()
        assert batch.obs.permute(0, 1, 3, 4, 2).is_contiguous() and batch.obs.shape[:2] == batch.action.shape
        shapes.append((rows, int(demonstrated.sum()), batch.action.shape[1]))
    return shapes


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        # The paper's shares, with no other setting than the path: 4 of 16 + 4 windows, 256 of 1024 + 256 contexts.
        (("loop.batch_size=16", "imagination.batch_size=1024"), [(16, 4, 8), (1024, 256, 4)]),
        (("demonstrations.batch_size=1", "demonstrations.imagination_batch_size=0"), [(4, 1, 8), (8, 0, 4)]),
        (("demonstrations.batch_size=0", "demonstrations.imagination_batch_size=3"), [(4, 0, 8), (8, 3, 4)]),
    ],
)
def test_the_share_of_every_batch(
    words: tuple[str, ...], shapes: Any, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batches_of([mixed(files), *words], tmp_path, monkeypatch) == shapes


def numbers(batch: Batch) -> torch.Tensor:
    """The step's number that ``counted`` spells in each frame."""
    return batch.obs[:, :, 0, 0, 0].long() + 256 * batch.obs[:, :, 1, 0, 0].long()


@pytest.mark.parametrize("life_loss_terminates", [True, False])
@pytest.mark.parametrize("reward_transform", ["identity", "sign"])
def test_steps_follow_the_environments_rules(life_loss_terminates: bool, reward_transform: Any, tmp_path: Path) -> None:
    write_npz(counted(23), tmp_path / "a.npz")
    write_npz(counted(300, first=23), tmp_path / "b.npz")
    settings = EnvSettings(
        game=None,
        id="stormlit/Catch-v0",
        size=16,
        life_loss_terminates=life_loss_terminates,
        reward_transform=reward_transform,
    )
    buffer = buffer_of([tmp_path / "a.npz", tmp_path / "b.npz"], settings)
    assert buffer.steps == 323
    batch = buffer.sample(3000, 8)
    number = numbers(batch)
    assert (number.diff(dim=1) == 1).all() and number.min() == 0 and number.max() == 322
    ends = number % 10 == 9
    assert torch.equal(batch.terminated, ends | (number % 10 == 3) if life_loss_terminates else ends)
    raw = (number - 5).float()
    assert torch.equal(batch.reward, raw.sign() if reward_transform == "sign" else raw)
    # After an end, after a cut, and at the start of each file; not after a lost life.
    starts = (number % 10 == 0) | (number % 20 == 15) | (number == 23)
    assert torch.equal(batch.is_first, starts)
    assert torch.equal(batch.action, number % 3)


def test_episode_starts_are_ignored_where_the_replay_buffers_are(files: list[Path]) -> None:
    assert buffer_of(files).sample(50, 8).is_first.any()
    assert not buffer_of(files, mark_episode_starts=False).sample(50, 8).is_first.any()


def test_frames_of_another_size_are_resized_as_the_environment_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grey = counted(9, obs=rng.integers(256, size=(9, 40, 20, 1), dtype=np.uint8))
    write_npz(grey, tmp_path / "a.npz")
    read_back = buffer_of([tmp_path / "a.npz"]).storage.read(0, 9).obs[:, 0]
    for frame, stored in zip(grey.obs, read_back.numpy(), strict=True):
        assert np.array_equal(resized_image(frame, (16, 16)), stored)
    # By area: a constant block stays what it is.
    blocks = np.kron(rng.integers(256, size=(1, 16, 16, 3), dtype=np.uint8), np.ones((1, 4, 4, 1), np.uint8))
    write_npz(counted(9, obs=blocks.repeat(9, axis=0)), tmp_path / "b.npz")
    assert torch.equal(
        buffer_of([tmp_path / "b.npz"]).storage.read(0, 1).obs[0, 0], torch.from_numpy(blocks[0, ::4, ::4].copy())
    )


def test_draws_depend_on_the_seed(files: list[Path]) -> None:
    first, same, other = (buffer_of(files, seed=seed).sample(32, 8).obs for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"action": np.full(20, 3)}, ["'action' is 3 at step 0", "stormlit/Catch-v0 has 3 actions, 0 to 2"]),
        ({"origin": Origin(env_id="ALE/Pong-v5")}, ["of ALE/Pong-v5", "stormlit/Catch-v0"]),
        ({"origin": Origin(action_meanings=["NOOP", "FIRE"])}, ["NOOP FIRE", "LEFT NOOP RIGHT"]),
    ],
)
def test_a_file_that_does_not_fit_the_environment_is_refused(
    changes: dict[str, Any], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(counted(20, **changes), tmp_path / "a.npz")
    sentence = refused_training(capsys, tmp_path, f"demonstrations.path={tmp_path / 'a.npz'}")
    for part in (f"{tmp_path / 'a.npz'}", *told):
        assert part in sentence


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("demonstrations.path=missing.npz", "missing.npz cannot be read: No such file"),
        ("demonstrations.path=[a.npz,[b]]", "is neither a file nor a list of files"),
        ("demonstrations.batch_size=-1", "demonstrations.batch_size=-1 is out of range"),
    ],
)
def test_settings_that_make_no_sense_are_told(
    word: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused_training(capsys, tmp_path, word)


def test_an_npz_is_refused_as_published(files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other file, a pickle, is not."""
    sentence = refused_training(capsys, tmp_path, mixed(files), "demonstrations.timing=as_published")
    assert str(files[0]) in sentence and "expected demonstrations.timing=aligned" in sentence
    assert buffer_of(files[1:], timing="as_published").steps == 30


@pytest.mark.slow
def test_a_file_shorter_than_a_window_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(catch(7), tmp_path / "short.npz")
    sentence = refused_training(capsys, tmp_path, f"demonstrations.path={tmp_path / 'short.npz'}")
    assert "has 7 steps" in sentence and "at least 8" in sentence and "loop.batch_length" in sentence
    # Just long enough, also while the replay buffer is shorter than a window.
    write_npz(catch(8), tmp_path / "long.npz")
    words = [f"demonstrations.path={tmp_path / 'long.npz'}", "loop.warmup_steps=3", "loop.env_steps=12"]
    run = train(tmp_path, "run", *words)
    assert logged(run)[12, "progress/nonfinite_updates"] == 0


@pytest.mark.slow
def test_two_halves_with_demonstrations_are_one_whole(files: list[Path], tmp_path: Path) -> None:
    words = (mixed(files), "demonstrations.batch_size=2", "demonstrations.imagination_batch_size=3")
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=56")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 56)
    assert_same_run(unbroken, resumed)
    state = read(newest(resumed) / "training-0.pt")["demonstrations"]
    assert sorted(state) == ["generator", "sha256"] and len(state["sha256"]) == 2


@pytest.mark.slow
def test_a_changed_file_is_refused_at_resume_and_a_moved_one_is_not(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [Path(shutil.copy(file, tmp_path / file.name)) for file in files]
    run = train(tmp_path, "run", mixed(own))
    words = ("resume", str(run), "loop.env_steps=56")
    write_npz(catch(41), own[0])
    sentence = refusal(capsys, *words)
    assert str(own[0]) in sentence and "not the file that the run was trained with" in sentence
    own[0].unlink()
    assert str(own[0]) in refusal(capsys, *words)
    assert "trained with 2" in refusal(capsys, *words, f"demonstrations.path={files[0]}")
    assert "not the file" in refusal(capsys, *words, mixed(files[::-1]))
    resume(run, 56, mixed(files))
    resume(run, 60, "demonstrations.path=null")
    resume(run, 64, mixed(files[:1]))
