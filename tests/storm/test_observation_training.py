"""Vectors, alone and beside images, through a whole run: training, resuming, evaluation, dreams, demonstrations."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import stormlit
from observation_envs import settings
from stormlit.cli import main
from stormlit.demonstrations import check_fits, read_demonstration
from stormlit.envs import env_facts
from stormlit.errors import DemonstrationError
from training import assert_same_run, logged, resume, rows, train

ENVS = {"Vector": ("env.isolation=process",), "Nested": ("player.context=frames",)}


def of(env: str) -> tuple[str, str]:
    return f"env.id=observation_envs:{env}-v0", "env.game=null"


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_two_halves_are_one_whole_which_is_evaluated_and_dreamt_with(env: str, tmp_path: Path) -> None:
    words = (*of(env), *ENVS[env], "env.num_envs=2", "evaluation.baselines=[random]", "loop.media_every_env_steps=24")
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=56")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 56)
    assert_same_run(unbroken, resumed)
    space = stormlit.load("run", run_dir=str(unbroken.parent)).world_model.observation_space
    obs = rows(unbroken)["obs"]
    assert obs.dtype == space.dtype and obs.shape[2:] == space.shape and len(np.unique(space.numbers(obs))) > 4
    keys = {key for _, key in logged(unbroken)}
    assert "dream/error_imagined_vector" in keys and ("dream/psnr_imagined" in keys) is (env == "Nested")
    drawn = {file.name.partition("-")[0] for file in (unbroken / "media").iterdir()}
    assert drawn - {"returns.png"} == ({"curves", "dream", "reconstruction"} if env == "Nested" else {"curves"})
    assert imageio.imread(unbroken / "media" / "curves-000000056.png").std() > 0
    assert main(["eval", "run", f"run.dir={unbroken.parent}"]) == 0
    picture = tmp_path / "dream.png"
    assert main(["dream", "run", f"run.dir={unbroken.parent}", "--dreams", "1", "-o", str(picture)]) == 0
    assert picture.is_file()


@pytest.mark.slow
def test_a_video_of_what_is_no_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run", *of("Choice"))
    assert main(["dream", "run", f"run.dir={tmp_path}", "-o", str(tmp_path / "dream.mp4")]) == 2
    assert "dream.mp4: expected a file ending in .png: it shows no image" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("env", ENVS)
def test_recorded_play_is_trained_with(env: str, tmp_path: Path) -> None:
    file = tmp_path / "played.npz"
    assert main(["demos", "record", "random", "-o", str(file), "--steps", "60", *of(env), "env.size=16"]) == 0
    assert main(["demos", "info", str(file)]) == 0
    mixed = ("demonstrations.batch_size=2", "demonstrations.imagination_batch_size=2")
    train(tmp_path, "run", *of(env), f"demonstrations.path={file}", *mixed)
    recorded, other = read_demonstration(file), settings("Choice")
    recorded.origin.env_id = None
    with pytest.raises(DemonstrationError, match=r"has observations .*, observation_envs:Choice-v0 has 4 float32$"):
        check_fits(file, recorded, other, env_facts(other))
    space = env_facts(settings(env)).observation_space
    broken = recorded.obs if space.image is None else recorded.obs[:, : 4 * space.width].view(np.float32)
    broken[3, 1] = np.nan
    with pytest.raises(DemonstrationError, match="numbers that are not finite"):
        check_fits(file, recorded, settings(env), env_facts(settings(env)))
