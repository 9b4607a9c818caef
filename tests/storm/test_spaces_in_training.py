"""Every kind of action and of observation through a whole run: resumed, evaluated, dreamt with and recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import action_envs
import observation_envs
import stormlit
from stormlit.cli import main
from stormlit.demonstrations import check_fits, read_demonstration
from stormlit.envs import env_facts
from stormlit.errors import DemonstrationError
from training import assert_same_run, logged, resume, rows, train

# What each environment is played with, and the sentence with which its recorded play is refused by another.
ENVS = {
    "action_envs:Started": ("evaluation.baselines=[random,constant]",),
    "action_envs:Multi": (),
    "action_envs:Binary": (),
    "action_envs:Box": (),
    "observation_envs:Vector": ("env.isolation=process",),
    "observation_envs:Nested": ("player.context=frames",),
}
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("env", ENVS)
def test_two_halves_are_one_whole_which_is_evaluated_and_dreamt_with(env: str, tmp_path: Path) -> None:
    words = (f"env.id={env}-v0", "env.num_envs=2", "loop.media_every_env_steps=24", *ENVS[env])
    unbroken = train(tmp_path / "a", "run", *words, "loop.env_steps=56")
    resumed = train(tmp_path / "b", "run", *words, "loop.env_steps=32")
    torch.rand(17)  # another process would stand elsewhere
    resume(resumed, 56)
    assert_same_run(unbroken, resumed)
    trained, held = stormlit.load("run", run_dir=str(unbroken.parent)), rows(unbroken)
    actions, space = held["action"], trained.agent.action_space
    assert actions.dtype == space.dtype and actions.shape[2:] == space.shape
    assert space.first_outside(actions.reshape(-1, *space.shape)) is None and len(np.unique(actions)) > 1
    seen = trained.world_model.observation_space
    assert held["obs"].dtype == seen.dtype and held["obs"].shape[2:] == seen.shape
    keys = {key for _, key in logged(unbroken)}
    assert any("always" in key for key in keys) is ("constant" in "".join(ENVS[env]))
    assert ("dream/error_imagined_vector" in keys) is bool(seen.vectors)
    assert ("dream/psnr_imagined" in keys) is (seen.image is not None)
    drawn = {file.name.partition("-")[0] for file in (unbroken / "media").iterdir()} - {"returns.png"}
    pictures = {"dream", "reconstruction"} if seen.image else set()
    assert drawn == pictures | ({"curves"} if seen.vectors else set())
    picture = tmp_path / f"dream.{'gif' if seen.image else 'png'}"
    for verb in (["eval"], ["dream", "--dreams", "1", "--output", str(picture)]):
        assert main([*verb, "run", f"run.dir={unbroken.parent}"]) == 0
    assert picture.is_file()


def test_a_video_of_what_is_no_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run", "env.id=observation_envs:Choice-v0")
    assert main(["dream", "run", f"run.dir={tmp_path}", "-o", str(tmp_path / "dream.mp4")]) == 2
    assert "dream.mp4: expected a file ending in .png: it shows no image" in capsys.readouterr().err


@pytest.mark.parametrize("env", ENVS)
def test_recorded_play_is_trained_with(env: str, tmp_path: Path) -> None:
    file, words = tmp_path / "played.npz", (f"env.id={env}-v0", "env.game=null")
    assert main(["demos", "record", "random", "-o", str(file), "--steps", "60", *words, "env.size=16"]) == 0
    assert main(["demos", "info", str(file)]) == 0
    mixed = ("demonstrations.batch_size=2", "demonstrations.imagination_batch_size=2")
    train(tmp_path, "run", *words, f"demonstrations.path={file}", *mixed)
    recorded = read_demonstration(file)
    recorded.origin.env_id = recorded.origin.action_meanings = None
    if env.startswith("action_envs"):
        other, told = action_envs.settings("BoxScalar" if "Box" not in env else "Multi"), "'action' is"
    else:
        told = r"has observations .*, observation_envs:Choice-v0 has 4 float32$"
        other = observation_envs.settings("Choice")
    with pytest.raises(DemonstrationError, match=told):
        check_fits(file, recorded, other, env_facts(other))
    if env.startswith("observation_envs"):
        settings = observation_envs.settings(env.partition(":")[2])
        space = env_facts(settings).observation_space
        broken = recorded.obs if space.image is None else recorded.obs[:, : 4 * space.width].view(np.float32)
        broken[3, 1] = np.nan
        with pytest.raises(DemonstrationError, match="numbers that are not finite"):
            check_fits(file, recorded, settings, env_facts(settings))
