"""Input that once ended in a traceback, ran out of memory or was believed: now one sentence, or the right answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from edge_envs import ShortOrLong
from stormlit.analysis.evaluate import evaluate
from stormlit.cli import main
from stormlit.config.compose import compose
from stormlit.envs import EnvSettings
from training import newest, refusal, refused_training, still, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("loop.warmup_steps=8", "loop.env_steps=12", "evaluation.episodes=1")
    return train(tmp_path_factory.mktemp("trained"), "run", *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("world_model.encoder.stem_channels.x=1", ["world_model.encoder.stem_channels", "single value", "'x'"]),
        # environments
        (
            "env.game=Breakout env.atari.max_frames=1000000000000",
            ["env.atari.max_frames=1000000000000", "at most 2147483647"],
        ),
        # numbers
        ("agent.loss_scales.entropy=inf", ["agent.loss_scales.entropy=inf", "finite"]),
        ("replay.capacity=7", ["replay.capacity=7", "loop.batch_length", "8"]),
        ("replay.capacity=15 env.num_envs=2", ["replay.capacity=15", "env.num_envs", "16"]),
        # options of parts, with their whole key
    ],
)
def test_it_is_told_in_one_sentence(
    words: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused_training(capsys, tmp_path, *words.split())
    assert sentence.startswith(told[0])  # the key
    for part in told:
        assert part in sentence


@pytest.mark.parametrize("reference", ["x" * 5000, "/" + "y" * 5000, "null\0byte", "/null\0byte"])
def test_references_that_cannot_be_paths(reference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "eval", reference, f"run.dir={tmp_path}")
    assert sentence.startswith(f"no run '{reference}' in {tmp_path}")


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("resume", "env.size=32 loop.env_steps=99", "another configuration: env.size=32 is 16 in the run 'run'"),
        ("resume", "run.name=other", "run.name=other: a run keeps its name, and this one is 'run'"),
        ("eval", "env.size=32", "another configuration: env.size=32 is 16 in the run 'run'"),
        ("dream", "run.name=other", "run.name=other: a run keeps its name, and this one is 'run'"),
    ],
)
def test_what_a_run_has_learned_with_does_not_change(
    verb: str, words: str, told: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refusal(capsys, verb, str(run), "loop.env_steps=14", *words.split())
    assert told in sentence and "tensor" not in sentence and "loop.env_steps" not in sentence


def test_updates_that_never_come_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("loop.warmup_steps=8", "loop.env_steps=12", "evaluation.episodes=1")
    train(tmp_path, "run", *words, "loop.world_model_updates_per_env_step=0", "loop.agent_updates_per_env_step=0.2")
    told = capsys.readouterr().err
    for ratio, module in (
        ("world_model_updates_per_env_step=0", "world model"),
        ("agent_updates_per_env_step=0.2", "agent"),
    ):
        assert f"loop.{ratio}: the {module} is never updated in the 4 steps after the random start" in told


def test_a_manifest_nested_without_end(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = newest(run) / "manifest.json"
    manifest.write_text("[" * 100_000)
    for verb in ("eval", "resume", "dream"):
        sentence = refusal(capsys, verb, str(run))
        assert str(manifest) in sentence and "damaged" in sentence


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_replay_buffer_that_memory_cannot_hold(
    error: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.empty

    def refuse_the_huge(*size: Any, **options: Any) -> torch.Tensor:
        if options.get("dtype") == torch.uint8 and size[0] == 1_000_000_000:
            raise error("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 49152000000000 bytes")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", refuse_the_huge)
    sentence = refused_training(capsys, tmp_path, "replay.capacity=1000000000", "env.size=128")
    assert "replay.capacity=1000000000" in sentence and "45,776.4 GiB" in sentence and "128x128" in sentence


def test_returns_are_printed_where_they_cannot_be_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run / "evaluation")
    (run / "evaluation").write_text("not a folder")
    capsys.readouterr()
    assert main(["eval", str(run), "evaluation.episodes=3"]) == 0
    captured = capsys.readouterr()
    assert len([line for line in captured.out.splitlines() if line.startswith("  episode")]) == 3
    assert f"not written to {run / 'evaluation'}" in captured.out and "3 episodes" in captured.out
    assert "Traceback" not in captured.err


def test_only_atari_games_are_compared_with_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another environment that is called like a game has nothing to do with it."""
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("mine/Pong-v0", entry_point=ShortOrLong)
    for env, normalised in (("mine/Pong-v0", None), ("ALE/Pong-v5", pytest.approx(20.7 / (14.6 + 20.7)))):
        settings = EnvSettings(game=None, id=env, size=8, max_episode_steps=5)
        result = evaluate("still", still, settings, episodes=2, num_envs=1, seed=0)
        assert result.game == "Pong" and result.human_normalized == normalised


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose(["tiny"], ["env.max_episode_steps=1e3", "loop.env_steps=1e2", "replay.capacity=1.28e2"])
    numbers = (config.env.max_episode_steps, config.loop.env_steps, config.replay.capacity)
    assert numbers == (1000, 100, 128) and {type(number) for number in numbers} == {int}
    file = tmp_path / "mine.yaml"
    file.write_text("env: {max_episode_steps: 1e3}\nloop: {env_steps: 1e2}\n")
    config = compose(["tiny", str(file)])
    assert (config.env.max_episode_steps, config.loop.env_steps) == (1000, 100)
    for word in ("env.max_episode_steps=1.5", "loop.env_steps=1.5e0"):
        assert word.partition("=")[0] in refusal(capsys, "config", "tiny", word)
