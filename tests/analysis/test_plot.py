"""The end of a run as pictures: its returns over environment steps, and its last dream."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import cv2
import matplotlib.figure
import numpy as np
import pytest
from matplotlib.axes import Axes

from stormlit.analysis.dream import Dream, Views
from stormlit.analysis.evaluate import Evaluation
from stormlit.analysis.pictures import dream_picture
from stormlit.analysis.returns_plot import plot_returns, running_mean
from stormlit.cli import main
from stormlit.data import Episode
from training import SMALL


def evaluation(policy: str, *returns: float) -> Evaluation:
    episodes = [Episode(0, index, value, 10, False, 0.0) for index, value in enumerate(returns)]
    return Evaluation(game="Catch", policy=policy, episodes=episodes)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of every figure that is saved."""
    axes: list[Axes] = []
    save = matplotlib.figure.Figure.savefig

    def saved(figure: matplotlib.figure.Figure, *arguments: Any, **options: Any) -> None:
        axes.extend(figure.axes)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    return axes


def test_a_running_mean_is_of_the_last_values_up_to_each() -> None:
    assert running_mean(np.arange(200.0))[0] == 10
    assert running_mean(np.arange(200.0))[1][-1] == 194.5  # of 190 to 199
    assert running_mean(np.array([3.0, 5.0]))[1].tolist() == [3.0, 4.0]


def test_episodes_their_mean_random_play_the_best_constant_and_the_agent(tmp_path: Path, drawn: list[Axes]) -> None:
    results = [evaluation("agent", 4, 6), evaluation("random", 1), evaluation("a", 2), evaluation("b", 3)]
    earlier = [(40, 1.0), (80, 4.0)]
    plot_returns(tmp_path / "returns.png", 100, [(10, 0.0), (20, 2.0)], results, earlier)
    image = cv2.imread(str(tmp_path / "returns.png"))
    assert image is not None and image.std() > 0
    [axes] = drawn
    episodes, mean, chance, constant, way, agent = axes.lines[:6]
    assert episodes.get_xydata().tolist() == [[10, 0], [20, 2]] and mean.get_xydata().tolist() == [[10, 0], [20, 1]]
    assert list(chance.get_ydata()) == [1, 1] and list(constant.get_ydata()) == [3, 3]
    assert way.get_xydata().tolist() == [[40, 1], [80, 4], [100, 5]]
    assert agent.get_xydata().tolist() == [[100, 5]]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "episodes of the training",
        "mean of the last 5",
        "random: 1",
        "b: 3",
        "agent, evaluated on the way",
        "agent, 2 episodes at the end: 5 +- 1",
    ]


def test_a_run_without_an_episode_or_a_baseline_is_drawn(tmp_path: Path, drawn: list[Axes]) -> None:
    plot_returns(tmp_path / "returns.png", 100, [], [evaluation("agent", 4)])
    assert len(drawn[0].figure.legends[0].get_texts()) == 1


def test_a_dream_shows_its_context_and_steps_up_to_its_last() -> None:
    brightness = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.ones((4, 4, 3), np.uint8)
    zeros = np.zeros(6, np.float32)
    dream = Dream(
        Views(brightness, 8 * brightness, 40 * brightness), None, zeros.astype(int), zeros, zeros > 0, zeros, zeros, 3
    )
    picture = dream_picture(dream)
    tile = (picture.shape[1] - 124) // 4
    rows = [28 + 60, 28 + tile + 60, 28 + 2 * tile + 60]
    # The context's last step, of index 2, and the three that were dreamt.
    assert [picture[row, 124 + column * tile + 60].tolist() for row in rows for column in (0, 3)] == [
        [3] * 3, [6] * 3, [24] * 3, [48] * 3, [120] * 3, [240] * 3,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_report_names_both_and_a_resumed_run_draws_every_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: list[Axes]
) -> None:
    words = [f"run.dir={tmp_path}", "loop.env_steps=72"]
    assert main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=run"]) == 0
    assert main(["resume", "run", *words]) == 0
    assert main(["train", *SMALL, *words, "run.name=unbroken"]) == 0
    told = capsys.readouterr().out.splitlines()
    [first] = [index for index, line in enumerate(told) if line.startswith("look first") and "unbroken" in line]
    media = tmp_path / "unbroken" / "media"
    assert told[first].endswith(str(media / "returns.png"))
    assert told[first + 1].endswith(str(media / "dream-000000072.png"))
    resumed, unbroken = drawn[1], drawn[2]
    assert resumed.lines[0].get_xydata().tolist() == unbroken.lines[0].get_xydata().tolist()
    assert len(unbroken.lines[0].get_xdata()) == 10  # episodes of 7 steps


@pytest.mark.slow
def test_a_plot_that_fails_ends_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def broken(name: str, *given: Any, **options: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ValueError("a matplotlibrc of its own")
        return imported(name, *given, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    assert main(["train", *SMALL, f"run.dir={tmp_path}", "run.name=run"]) == 0
    told = capsys.readouterr()
    assert "the plot of the returns was not drawn: ValueError: a matplotlibrc of its own" in told.err
    assert "returns.png" not in told.out and "dream-000000048.png" in told.out
