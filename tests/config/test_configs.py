"""The bundled configurations: each of them builds, and storm is the paper's; what a change of an option means."""

from __future__ import annotations

import operator
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stormlit.cli import main
from stormlit.config.compose import compose, config_folder
from stormlit.config.schema import KEYS, Config, keys_of
from stormlit.envs import ATARI_100K_GAMES, VectorEnv
from stormlit.runs.allowed_changes import MAY_CHANGE
from stormlit.runs.assembly import build_modules
from stormlit.runs.checkpoint import list_checkpoints, verify
from stormlit.runs.directory import RunDirectory
from stormlit.runs.result import NOT_PROTOCOL, asked, config_hash
from stormlit.sweeps import grid_file
from stormlit.tracking import mlflow_tracker

FILES = sorted(config_folder().glob("*.yaml"))

# Zhang et al. (2023), section 3 and the tables of hyperparameters in its appendix.
PAPER: dict[str, Any] = {
    "env.size": 64,
    "env.num_envs": 1,
    "env.atari.frame_skip": 4,
    "env.atari.max_pool": True,
    "env.life_loss_terminates": True,
    "world_model.hidden_dim": 512,
    "world_model.free_bits": 1.0,
    "world_model.reward_bins": 255,
    "world_model.reward_low": -20.0,
    "world_model.reward_high": 20.0,
    "world_model.loss_scales.reconstruction": 1.0,
    "world_model.loss_scales.reward": 1.0,
    "world_model.loss_scales.continuation": 1.0,
    "world_model.loss_scales.dyn": 0.5,
    "world_model.loss_scales.rep": 0.1,
    "world_model.optimizer.learning_rate": 1e-4,
    "world_model.optimizer.clip_norm": 1000.0,
    "agent.hidden_dim": 512,
    "agent.gamma": 0.985,
    "agent.lambda_": 0.95,
    "agent.loss_scales.entropy": 3e-4,
    "agent.slow_critic_decay": 0.98,
    "agent.return_normalizer.decay": 0.99,
    "agent.return_normalizer.low": 5.0,
    "agent.return_normalizer.high": 95.0,
    "agent.return_normalizer.minimum": 1.0,
    "agent.value_bins": 255,
    "agent.value_low": -20.0,
    "agent.value_high": 20.0,
    "agent.optimizer.learning_rate": 3e-5,
    "agent.optimizer.eps": 1e-5,
    "agent.optimizer.clip_norm": 100.0,
    "imagination.batch_size": 1024,
    "imagination.context_length": 8,
    "imagination.horizon": 16,
    "loop.env_steps": 100_000,
    "loop.warmup_steps": 1024,
    "loop.batch_size": 16,
    "loop.batch_length": 64,
    "loop.world_model_updates_per_env_step": 1.0,
    "loop.agent_updates_per_env_step": 1.0,
    "evaluation.episodes": 20,
}
PAPER_PARTS: dict[str, dict[str, Any]] = {
    "world_model.encoder": {"name": "cnn", "stem_channels": 32, "final_width": 4},
    "world_model.decoder": {"name": "cnn", "stem_channels": 32, "final_width": 4},
    "world_model.latent": {"name": "categorical", "groups": 32, "classes": 32, "unimix": 0.01},
    "world_model.sequence_model": {"name": "transformer", "num_layers": 2, "num_heads": 8, "dropout": 0.1},
    "agent.agent_state": {"name": "both"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_bundled_configuration_builds_both_modules(file: Path) -> None:
    by_path, by_name = compose([str(file)]), compose([file.stem])
    assert by_path == by_name
    envs = VectorEnv(by_name.env, seed=0)
    world_model, agent = build_modules(by_name, envs.observation_space, envs.action_space)
    envs.close()
    assert world_model.latent_dim == agent.agent_state.state_dim - world_model.hidden_dim
    assert agent.action_space == envs.action_space


MINATAR = ["Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders"]
BUNDLED: list[Any] = [["quickstart", f"env.id=MinAtar/{game}-v1"] for game in MINATAR]
ATARI = ("storm", "official", "upndown")  # up to half a minute: emulators play everything again
BUNDLED += [pytest.param([f.stem], marks=[pytest.mark.slow] if f.stem in ATARI else []) for f in FILES]


@pytest.mark.parametrize("words", BUNDLED, ids=lambda words: words[-1])
def test_bundled_environments_go_on_from_anywhere(words: list[str]) -> None:
    """In the middle of any episode, the first and the later ones."""
    settings = compose(words[:1], words[1:]).env
    random = np.random.default_rng(0)
    with closing(VectorEnv(settings, seed=0)) as envs, closing(VectorEnv(settings, seed=1)) as others:
        envs.reset()
        others.reset()
        for _ in range(12):
            for _ in range(random.integers(1, 12)):
                envs.step(envs.action_space.random(random, settings.num_envs))
            others.load_state_dict(envs.state_dict())
            assert np.array_equal(others.current_obs, envs.current_obs)
        action = envs.action_space.random(random, settings.num_envs)
        one, two = envs.step(action), others.step(action)
        assert np.array_equal(one.obs, two.obs) and np.array_equal(one.reward, two.reward)


def test_storm_is_the_default() -> None:
    assert compose(["storm"]) == compose()


def test_storm_has_the_papers_numbers_and_parts() -> None:
    storm = compose(["storm"])
    assert {key: operator.attrgetter(key)(storm) for key in PAPER} == PAPER
    for key, part in PAPER_PARTS.items():
        assert operator.attrgetter(key)(storm).items() >= part.items(), key


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[] if file.stem == "storm" else [pytest.mark.slow]) for file in FILES],
    ids=lambda file: file.stem,
)
def test_what_config_prints_is_the_same_configuration(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", file.stem, "seed=7"]) == 0
    printed = capsys.readouterr().out
    again = tmp_path / "printed.yaml"
    again.write_text(printed)
    assert compose([str(again)]) == compose([file.stem], ["seed=7"])
    assert main(["config", str(again)]) == 0
    assert capsys.readouterr().out == printed


def test_a_name_and_a_path_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder or file called tiny in the working directory does not hide the bundled one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny.yaml").write_text("seed: 5\n")
    assert compose(["tiny"]).seed == 0
    assert compose(["tiny.yaml"]) == compose([], ["seed=5"])
    assert isinstance(compose(["tiny"]), Config)


# ---- What a change of an option means stands where it is declared, and decides the same everywhere


def test_an_option_has_the_role_of_its_group() -> None:
    assert {option.role for key, option in KEYS.items() if key.startswith("checkpoint.")} == {"saving"}
    assert KEYS["run.init_from"].role == "start" and KEYS["world_model.hidden_dim"].role == "experiment"


def test_what_may_change_in_a_grid_may_in_its_runs() -> None:
    assert all(key.startswith(MAY_CHANGE) for key in grid_file.MAY_CHANGE)
    assert not {"seed", "precision", "run.init_from", "loop.warmup_steps"} & set(MAY_CHANGE)


def test_the_tracker_which_knows_no_configuration_agrees() -> None:
    changes_nothing = keys_of("place", "start", "budget", "saving")
    for key in KEYS:
        assert f"{key}.".startswith(mlflow_tracker.CHANGES_NO_VALUE) == (key in changes_nothing), key


def test_runs_that_differ_in_seed_and_place_are_of_one_experiment() -> None:
    words = ["seed=3", "threads=2", "run.name=other", "run.dir=elsewhere", "tracking=csv", "resume=auto"]
    assert config_hash(compose([], words)) == config_hash(compose())
    assert config_hash(compose([], ["agent.hidden_dim=64"])) != config_hash(compose())
    assert {"loop", "checkpoint", "compile"} <= set(asked(compose()))


def test_the_protocol_is_what_a_score_is_worth() -> None:
    assert {"isolation", "size", "num_envs"} <= NOT_PROTOCOL
    assert not {"game", "id", "atari.sticky_actions", "max_episode_steps", "wrappers"} & NOT_PROTOCOL


# ---- The paper's networks start, train and save on every game of the benchmark


@pytest.mark.parametrize(
    "game", ["Pong", *(pytest.param(game, marks=pytest.mark.slow) for game in ATARI_100K_GAMES if game != "Pong")]
)
def test_the_paper_s_settings_start_train_and_save(game: str, tmp_path: Path) -> None:
    small_batches = ["loop.batch_size=2", "loop.batch_length=8", "imagination.batch_size=4"]
    short = ["loop.env_steps=6", "evaluation.episodes=1", "env.max_episode_steps=10", "tracking=none"]
    words = ["train", "storm", f"env.game={game}", *small_batches, *short, f"run.dir={tmp_path}", "run.name=game"]
    assert main(words) == 0

    run = RunDirectory(tmp_path / "game")
    assert verify(list_checkpoints(run)[-1]).manifest["env_steps"] == 6
    assert list(run.media.glob("dream-*")) and list(run.evaluation.glob("*.json"))
    shutil.rmtree(tmp_path / "game")  # 220 MB each
