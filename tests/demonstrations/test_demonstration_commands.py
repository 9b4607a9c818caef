"""``stormlit demos info | convert | record``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recorded import as_official, catch, counted, write_pickle
from stormlit.cli import main
from stormlit.demonstrations import Origin, read_demonstration, write_npz
from stormlit.demonstrations.files import SHAPES
from training import refusal, train

CATCH_WORDS = ("env.id=stormlit/Catch-v0", "env.size=16")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["demos", *words]) == 0
    return capsys.readouterr().out


def test_info_shows_frames_episodes_and_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = counted(24, origin=Origin("stormlit/Catch-v0", 3, ["LEFT", "NOOP", "RIGHT"], None, "random"))
    write_npz(own, tmp_path / "a.npz")
    write_pickle(tmp_path / "b.pkl", as_official(counted(20)))
    text = shown(capsys, "info", str(tmp_path / "a.npz"), str(tmp_path / "b.pkl"))
    first, second = text.split(str(tmp_path / "b.pkl"))
    for part in ("stormlit/Catch-v0, 3 actions", "random", "24 of 16x16x3", "3 complete, returns -5, 35, 60"):
        assert part in first
    # 14 ends by truncation, 9 and 19 by termination; what follows is not complete.
    assert "1 not complete at the end of the file, return 66" in first
    assert "0 (LEFT) 8x, 1 (NOOP) 8x, 2 (RIGHT) 8x" in first and "lives lost   3" in first
    assert "unknown" in second and "18 of 16x16x3" in second and "0 7x, 1 5x, 2 6x" in second


def test_info_of_many_episodes_shows_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_npz(catch(12 * 7), tmp_path / "a.npz")
    text = shown(capsys, "info", str(tmp_path / "a.npz"))
    assert "12 complete" in text and "mean" in text and "not complete" not in text and "played by" not in text


def test_convert_writes_down_the_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    played = catch(30)
    source, output = write_pickle(tmp_path / "a.pkl", as_official(played)), tmp_path / "out" / "a.npz"
    # The words may come before or behind the options.
    assert "stormlit/Catch-v0" in shown(capsys, "convert", str(source), "-o", str(output), *CATCH_WORDS)
    again = tmp_path / "again.npz"
    shown(capsys, "convert", str(source), *CATCH_WORDS, "-o", str(again))
    for file in (output, again):
        converted, read = read_demonstration(file), read_demonstration(source)
        assert all(np.array_equal(getattr(converted, name), getattr(read, name)) for name in SHAPES)
        assert converted.origin == Origin("stormlit/Catch-v0", 3, ["LEFT", "NOOP", "RIGHT"])
    shown(capsys, "convert", str(again), "-o", str(tmp_path / "b.npz"))
    assert read_demonstration(tmp_path / "b.npz").origin == converted.origin


def test_convert_refuses_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = write_pickle(tmp_path / "a.pkl", as_official(counted(30))), tmp_path / "a.npz"
    words = ("demos", "convert", str(source), "-o", str(output))
    assert "env.game=NAME" in refusal(capsys, *words, "env.size=16")
    assert "is not of the form KEY=VALUE" in refusal(capsys, "demos", "convert", str(source), "x", "-o", str(output))
    assert ".npz" in refusal(capsys, "demos", "convert", str(source), "-o", str(tmp_path / "a.pkl"))
    write_pickle(source, as_official(counted(30, action=np.full(30, 7))))
    assert "'action' is 7" in refusal(capsys, *words, *CATCH_WORDS)
    assert not output.exists()


def test_record_random_play(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "random.npz"
    words = ("record", "random", "-o", str(output), "--steps", "25", *CATCH_WORDS, "env.reward_transform=sign")
    text = shown(capsys, *words)
    assert "25 of 16x16x3" in text and f"demonstrations.path={output}" in text
    first = read_demonstration(output)
    assert first.origin.policy == "random" and first.origin.env_id == "stormlit/Catch-v0"
    assert first.origin.env is not None and first.origin.env["size"] == 16
    assert first.terminated.sum() == 3 and set(np.unique(first.action)) == {0, 1, 2}
    shown(capsys, *words)
    assert np.array_equal(read_demonstration(output).obs, first.obs)
    shown(capsys, *words, "seed=1")
    assert not np.array_equal(read_demonstration(output).obs, first.obs)


@pytest.mark.slow
def test_record_a_trained_run_and_train_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run", "loop.warmup_steps=8", "loop.env_steps=12", "evaluation.episodes=1")
    output = tmp_path / "run.npz"
    words = ("record", "run", f"run.dir={tmp_path}", "-o", str(output), "--steps", "30", "evaluation.greedy=false")
    assert "run, step-000000012" in shown(capsys, *words)
    first = read_demonstration(output)
    shown(capsys, *words)
    assert np.array_equal(read_demonstration(output).action, first.action)
    shown(capsys, *words, "evaluation.greedy=true")
    assert not np.array_equal(read_demonstration(output).action, first.action)
    train(tmp_path, "second", f"demonstrations.path={output}", "loop.env_steps=30")


@pytest.mark.slow
def test_rewards_and_lost_lives_are_recorded_as_the_game_tells_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the settings make of them for learning."""
    output = tmp_path / "breakout.npz"
    game = ("env.game=Breakout", "env.size=16", "env.atari.noop_max=30")
    shown(capsys, "record", "random", "-o", str(output), "--steps", "400", *game, "env.reward_transform=sign")
    played = read_demonstration(output)
    assert played.life_lost.sum() >= 5 and 0 < played.terminated.sum() < played.life_lost.sum()
    assert not (played.terminated & ~played.life_lost).any()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("record", "random", "-o", "a.npz", "--steps", "0"), "--steps=0"),
        (("record", "nobody", "-o", "a.npz"), "no run 'nobody'"),
    ],
)
def test_refusals(
    words: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refusal(capsys, "demos", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("info",), ("record",), ("convert", "a.npz"), ("play",)])
def test_words_that_are_missing_are_told_by_the_parser(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demos", *words])
    assert ended.value.code == 2
