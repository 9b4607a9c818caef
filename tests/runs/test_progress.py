"""The progress bar counts, reports its speed and keeps quiet in log files."""

from __future__ import annotations

import re
import time

import pytest

from stormlit.runs.progress import ProgressBar


def test_bar_shows_steps_rate_return_and_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=200, initial=50) as bar:
        bar.advance(100)
        bar.show(12.5, "train")
    last = capsys.readouterr().err.strip().split("\r")[-1]
    assert " 75%" in last and "150/200" in last and " steps/s, " in last
    assert last.endswith(" left, train, return 12.5]")


def test_random_steps_tell_nothing_about_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=10_000) as bar:
        bar.advance(1000)
        bar.show(None, "random")
    assert " left" not in capsys.readouterr().err
    with ProgressBar(total=1000) as bar:
        bar.advance(500)  # at once
        bar.show(None, "random")
        time.sleep(0.2)  # a step of training
        bar.advance(1)
        bar.show(None, "train")
    last = capsys.readouterr().err.strip().split("\r")[-1]
    minutes, seconds = re.search(r"(\d+):(\d+) left", last).groups()  # type: ignore[union-attr]
    assert int(minutes) * 60 + int(seconds) >= 499 * 0.2 - 1


def test_no_return_is_shown_before_the_first_episode_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=10) as bar:
        bar.show(None, "collect")
    err = capsys.readouterr().err
    assert "collect" in err and "return" not in err


def test_log_files_are_not_spammed(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=1000) as bar:
        for _ in range(1000):
            bar.advance(1)
            bar.show(1.0, "train")
    assert capsys.readouterr().err.count("\r") <= 3


def test_speed_leaves_out_the_steps_of_earlier_processes() -> None:
    with ProgressBar(total=10_000, initial=5_000) as bar:
        assert bar.steps_per_second() == 0.0
        time.sleep(0.05)
        bar.advance(100)
        assert 0 < bar.steps_per_second() <= 100 / 0.05
        assert bar.steps_per_second() == 0.0  # since the last call


def test_a_disabled_bar_counts_but_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(total=10, enabled=False) as bar:
        bar.advance(5)
        bar.show(1.0, "train")
        assert bar.steps_per_second() > 0
    assert capsys.readouterr().err == ""
