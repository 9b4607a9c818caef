"""stormlit from Python: a trained run in one line, its environment in another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import stormlit
from stormlit.errors import CheckpointError, ConfigError, EnvironmentSetupError, StormlitError
from training import newest, read, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "loved")


def test_a_loaded_run_plays(run: Path) -> None:
    trained = stormlit.load("loved", run_dir=str(run.parent))
    env = stormlit.make_env(trained.config)
    obs, _ = env.reset(seed=0)
    is_first = True
    ended = 0
    for _ in range(20):
        (action,) = trained.player.act(obs[None], np.array([is_first]))
        assert env.action_space.contains(action)
        obs, _, terminated, truncated, _ = env.step(action)
        is_first = terminated or truncated
        ended += is_first
        if is_first:
            obs, _ = env.reset()
    assert ended == 2
    assert trained.action_meanings == ["LEFT", "NOOP", "RIGHT"]


def test_it_holds_the_newest_weights_ready_to_use(run: Path) -> None:
    trained = stormlit.load(str(run))
    assert trained.checkpoint == newest(run)
    weights = read(newest(run) / "weights.pt")
    for module, stored in ((trained.world_model, weights["world_model"]), (trained.agent, weights["agent"])):
        assert not module.training
        state = module.state_dict()
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[name], stored[name]) for name in stored)
    assert trained.config.run.name == "loved"
    assert trained.directory.path == run.resolve()


def test_a_checkpoint_and_overrides_can_be_chosen(run: Path) -> None:
    older = run / "checkpoints" / "step-000000024"
    trained = stormlit.load(str(older), overrides=("evaluation.episodes=7",))
    assert trained.checkpoint == older.resolve()
    assert trained.config.evaluation.episodes == 7
    stored = read(older / "weights.pt")["agent"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in trained.agent.state_dict().items())


def test_environments_by_name_settings_and_configuration(run: Path) -> None:
    config = stormlit.load(str(run)).config
    for settings, shape in ((config, (16, 16, 3)), (config.env, (16, 16, 3)), ("Pong", (64, 64, 3))):
        env = stormlit.make_env(settings)
        assert env.reset(seed=0)[0].shape == env.observation_space.shape == shape
        env.close()
    with pytest.raises(EnvironmentSetupError, match="did you mean 'Pong'"):
        stormlit.make_env("Pongg")


def test_what_cannot_be_loaded_says_why(run: Path) -> None:
    with pytest.raises(CheckpointError, match="did you mean 'loved'"):
        stormlit.load("lovd", run_dir=str(run.parent))
    with pytest.raises(ConfigError, match="did you mean"):
        stormlit.load(str(run), overrides=("evaluation.episods=7",))
    with pytest.raises(CheckpointError, match="another configuration"):
        stormlit.load(str(run), overrides=("agent.hidden_dim=32",))
    assert issubclass(CheckpointError, StormlitError)


def test_the_package_says_what_it_has() -> None:
    assert {"load", "make_env", "Trained", "__version__"} <= set(stormlit.__all__)
    assert all(hasattr(stormlit, name) for name in stormlit.__all__)
    with pytest.raises(AttributeError, match="stormlit"):
        stormlit.lod  # noqa: B018
