"""The bundled configurations of other environments than Atari train, and learn; those of the quickstart and Catch's
images are in test_storm_learns.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pytest
import torch

from stormlit.config.compose import compose
from stormlit.envs import EnvSettings, make_env
from stormlit.runs.assembly import build_training
from stormlit.runs.device import make_fabric
from stormlit.storm.loop import fit

# What each sees and does: image, numbers, kind of action.
EXAMPLES = {
    "cartpole": (None, 4, "discrete"),
    "pendulum": (None, 3, "box"),
    "catch_continuous": ((16, 16, 3), 0, "box"),
    "catch_dict": ((16, 16, 3), 16, "discrete"),
    "quickstart": ((10, 10, 4), 0, "discrete"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_three_steps(name: str) -> None:
    updates = [f"loop.{module}_updates_per_env_step=1" for module in ("world_model", "agent")]
    short = ["loop.warmup_steps=20", "loop.env_steps=23", "loop.batch_size=2", "imagination.batch_size=4"]
    config = compose([name], ["tracking=none", "env.num_envs=1", *short, *updates])
    training = build_training(config, make_fabric(config))
    space, actions = training.envs.observation_space, training.envs.action_space
    assert (space.image, space.width, actions.kind) == EXAMPLES[name]
    before = [module.state_dict() for module in (training.world_model, training.agent)]
    before = [{name: tensor.clone() for name, tensor in weights.items()} for weights in before]
    fit(training, lambda: None)
    training.envs.close()
    assert (training.progress.world_model_updates, training.progress.agent_updates) == (3, 3)
    for weights, module in zip(before, (training.world_model, training.agent), strict=True):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
        moved = [name for name, tensor in module.named_parameters() if not torch.equal(tensor, weights[name])]
        assert len(moved) > len(weights) // 2


def test_installed_packages_register_the_environments_of_their_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    def register() -> None:
        gymnasium.register("theirs/Catch-v0", entry_point="stormlit.envs.catch:Catch")

    def plugins(group: str, name: str) -> list[SimpleNamespace]:
        return [SimpleNamespace(load=lambda: register)] if (group, name) == ("gymnasium.envs", "theirs") else []

    monkeypatch.setattr("stormlit.envs.make.entry_points", plugins)
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    make_env(EnvSettings(game=None, id="theirs/Catch-v0", size=8)).close()


SHORT = "env.num_envs=8 loop.env_steps=8000 loop.warmup_steps=1600 imagination.batch_size=64 loop.batch_size=8 "
SHORT += "loop.world_model_updates_per_env_step=0.25 loop.agent_updates_per_env_step=0.25"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of work, and a machine may be shared
@pytest.mark.parametrize(
    ("name", "words", "bar"),
    [
        ("cartpole", "loop.env_steps=3000", 100.0),  # random play: 22
        ("pendulum", SHORT, -900.0),  # -1200
        ("catch_continuous", "evaluation.episodes=100", -0.3),  # -0.75
        ("catch_dict", "loop.env_steps=2000", 0.2),  # -0.75
    ],
)
def test_an_example_learns_from_scratch(name: str, words: str, bar: float, tmp_path: Path) -> None:
    """Most of them shorter than the configuration says, and all with a bar far above random play."""
    how = ["evaluation.episodes=20", "evaluation.baselines=[]", "loop.media_every_env_steps=0", *words.split()]
    output = [f"run.dir={tmp_path}", "run.name=learns", "tracking=csv"]
    # One thread is as fast as two at these sizes, and adds in the same order every time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stormlit", "train", name, *how, *output]
    subprocess.run(command, env=environment, check=True, timeout=1700)
    evaluation = max((tmp_path / "learns" / "evaluation").glob("*.json"))  # the last
    assert json.loads(evaluation.read_text())["mean"] >= bar
