"""What ``env.kwargs``, ``env.wrappers`` and ``env.render_pixels`` make of an environment, here and in a process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stormlit.config.compose import compose, to_yaml
from stormlit.envs import EnvSettings, VectorEnv, make_env
from stormlit.errors import EnvironmentSetupError

DRAWN: dict[str, Any] = {"game": None, "id": "env_words:Drawn-v0", "size": 10}
PIXELS: dict[str, Any] = {**DRAWN, "render_pixels": True}


def first_frame(settings: EnvSettings) -> np.ndarray:
    envs = VectorEnv(settings, seed=3)
    frame = envs.reset()[0]
    envs.close()
    return frame


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_keyword_arguments_wrappers_and_pixels_make_the_picture(isolation: str) -> None:
    """Two rows of ten, of which one is bright, inverted and then halved, or the other way round."""
    words: dict[str, Any] = {**PIXELS, "kwargs": {"rows": 2}, "isolation": isolation}
    plain = first_frame(EnvSettings(**words))
    assert plain.shape == (10, 10, 3) and sorted(plain[[0, 9], 0].tolist()) == [[0, 0, 0], [255, 128, 0]]
    wrappers = ["env_words:Negative", "env_words:Halved"]
    assert np.array_equal(first_frame(EnvSettings(**words, wrappers=wrappers)), (255 - plain) // 2)
    assert np.array_equal(first_frame(EnvSettings(**words, wrappers=wrappers[::-1])), 255 - plain // 2)


def test_pixels_change_with_the_steps() -> None:
    env = make_env(EnvSettings(**PIXELS, kwargs={"rows": 10}))
    before, _ = env.reset(seed=1)
    after, *_ = env.step(0)
    assert np.array_equal(np.roll(before, 1, axis=0), after)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {**DRAWN, "kwargs": {"rwos": 3}},
            r"env.id=env_words:Drawn-v0, env.kwargs.rwos=3 cannot be made: .*unexpected keyword argument 'rwos'",
        ),
        ({"game": "Pong", "kwargs": {"frameskip": 2}}, r"^env.kwargs.frameskip is set by env.atari.frame_skip"),
        ({**PIXELS, "wrappers": ["env_words:Negativ"]}, r"^env.wrappers=env_words:Negativ: .*did you mean 'Negative'"),
        ({**PIXELS, "wrappers": ["env_words:NoWrapper"]}, r"NoWrapper does not derive from gymnasium.Wrapper$"),
        (
            {**PIXELS, "wrappers": ["env_words:Choosy"]},
            r"^env.wrappers=env_words:Choosy cannot be put around env.id=env_words:Drawn-v0: RuntimeError: not this",
        ),
        ({**PIXELS, "kwargs": {"broken": True}}, r"^env.render_pixels=true: .* cannot be rendered: OSError: no disp"),
        ({**PIXELS, "kwargs": {"render_mode": "human"}}, r"^env.kwargs.render_mode=human contradicts env.render_pix"),
        (
            {"game": None, "id": "stormlit/Catch-v0", "render_pixels": True},
            r"^env.render_pixels=true: env.id=stormlit/Catch-v0 cannot be made: .*render_mode",
        ),
        ({**PIXELS, "id": "env_words:Blind-v0"}, r"^env.render_pixels=true needs an environment .* renders human$"),
    ],
)
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_wrong_word_is_one_sentence(settings: dict[str, Any], sentence: str, isolation: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=sentence) as raised:
        VectorEnv(EnvSettings(**{**settings, "isolation": isolation}), seed=0)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_the_words_are_composed_and_kept(tmp_path: Path) -> None:
    words = [
        "env.id=env_words:Drawn-v0",
        "env.kwargs.rows=2",
        "env.kwargs.path=a.yaml",
        "env.wrappers=env_words:Halved",
    ]
    config = compose([], [*words, "env.kwargs.deep={colour: '3', on: [1, 2.5]}"])
    assert config.env.kwargs == {"rows": 2, "path": "a.yaml", "deep": {"colour": "3", "on": [1, 2.5]}}
    assert config.env.wrappers == ["env_words:Halved"]
    (tmp_path / "kept.yaml").write_text(to_yaml(config))
    assert compose([str(tmp_path / "kept.yaml")]) == config
    assert compose([str(tmp_path / "kept.yaml")], ["env.kwargs={}"]).env.kwargs == {}
