"""What a change of an option means stands where it is declared, and decides the same everywhere."""

from __future__ import annotations

from stormlit.config.compose import compose
from stormlit.config.schema import KEYS, keys_of
from stormlit.runs.allowed_changes import MAY_CHANGE
from stormlit.runs.result import NOT_PROTOCOL, asked, config_hash
from stormlit.sweeps import grid_file
from stormlit.tracking import mlflow_tracker


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
