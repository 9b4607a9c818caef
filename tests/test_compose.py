"""Configurations are layered, overridden in any order and checked."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from stormlit import registry
from stormlit.config.compose import compose, to_tree, to_yaml
from stormlit.config.parts import PART_KEYS
from stormlit.errors import ConfigError


def test_every_kind_of_override_works_in_any_order() -> None:
    words = ("world_model.encoder=resnet", "world_model.sequence_model.num_layers=6", "env.game=Pong")
    for order in itertools.permutations(words):
        config = compose(["storm"], order)
        assert config.world_model.encoder == {"name": "resnet", **registry.schema("encoder", "resnet")}
        assert config.world_model.sequence_model["num_layers"] == 6
        assert config.world_model.sequence_model["name"] == "transformer"
        assert config.env.game == "Pong" and config.env.id is None


def test_an_option_may_come_before_the_name_of_its_part() -> None:
    words = ["world_model.encoder.blocks=3", "world_model.encoder=resnet"]
    assert compose([], words) == compose([], words[::-1])
    assert compose([], words).world_model.encoder["blocks"] == 3


@pytest.mark.parametrize("name", ["world_model.sequence_model", "world_model.sequence_model.name"])
def test_another_part_leaves_no_option_of_the_one_before(name: str) -> None:
    config = compose(["tiny"], [f"{name}=gru"])
    assert config.world_model.sequence_model == {"name": "gru", **registry.schema("sequence_model", "gru")}


def test_another_part_of_the_same_options_gets_its_own_defaults() -> None:
    """tiny gives its cnn 16 channels; a resnet named after it must not inherit them."""
    assert compose(["tiny"]).world_model.encoder["stem_channels"] == 16
    default = registry.schema("encoder", "resnet")["stem_channels"]
    assert default != 16
    assert compose(["tiny"], ["world_model.encoder=resnet"]).world_model.encoder["stem_channels"] == default


def test_naming_the_same_part_again_keeps_its_options() -> None:
    assert compose(["tiny"], ["world_model.encoder=cnn"]) == compose(["tiny"])


def test_layers_win_over_those_before(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("seed: 1\nloop: {batch_size: 2, batch_length: 8}\nworld_model: {encoder: {stem_channels: 4}}\n")
    second.write_text("loop: {batch_size: 3}\nworld_model: {encoder: resnet}\n")
    assert compose().loop.batch_size == 16
    assert compose([str(first)]).loop.batch_size == 2
    config = compose([str(first), str(second)])
    assert (config.seed, config.loop.batch_size, config.loop.batch_length) == (1, 3, 8)
    assert config.world_model.encoder == {"name": "resnet", **registry.schema("encoder", "resnet")}
    assert compose([str(second), str(first)]).loop.batch_size == 2
    assert compose([str(first), str(second)], ["loop.batch_size=5"]).loop.batch_size == 5
    assert compose([], ["seed=5", "seed=6"]).seed == 6


@pytest.mark.parametrize(
    ("words", "game", "gymnasium_id"),
    [
        (["env.game=Pong"], "Pong", None),
        (["env.id=stormlit/Catch-v0"], None, "stormlit/Catch-v0"),
        (["env.id=stormlit/Catch-v0", "env.game=Pong"], "Pong", None),
        (["env.game=Pong", "env.id=stormlit/Catch-v0"], None, "stormlit/Catch-v0"),
        (["env.game=null", "env.id=stormlit/Catch-v0"], None, "stormlit/Catch-v0"),
    ],
)
@pytest.mark.parametrize("file", ["storm", "tiny"])
def test_the_last_of_game_and_id_clears_the_other(
    file: str, words: list[str], game: str | None, gymnasium_id: str | None
) -> None:
    env = compose([file], words).env
    assert (env.game, env.id) == (game, gymnasium_id)


def test_a_file_may_use_dotted_keys(tmp_path: Path) -> None:
    file = tmp_path / "dotted.yaml"
    file.write_text("env.game: Pong\nworld_model.encoder: resnet\n")
    assert compose([str(file)]) == compose([], ["env.game=Pong", "world_model.encoder=resnet"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["env.game=Pong", "world_model.encoder=resnet", "tracking=csv", "agent.lambda_=0.5"],
        ["world_model.sequence_model=gru", "evaluation.baselines=[random, constant]", "run.name=a-1"],
    ],
)
@pytest.mark.parametrize("file", ["storm", "tiny"])
def test_a_configuration_survives_trees_and_files(file: str, words: list[str], tmp_path: Path) -> None:
    config = compose([file], words)
    written = tmp_path / "again.yaml"
    written.write_text(to_yaml(config))
    assert compose([str(written)]) == config
    assert compose(["quickstart", str(written)]) == config
    assert yaml.safe_load(to_yaml(config)) == to_tree(config)


def test_the_tree_is_a_copy() -> None:
    config = compose(["tiny"])
    to_tree(config)["world_model"]["encoder"]["name"] = "resnet"
    assert config.world_model.encoder["name"] == "cnn"


def test_a_file_of_another_version_is_completed_or_refused(tmp_path: Path) -> None:
    tree = to_tree(compose(["tiny"]))
    del tree["loop"]["warmup_steps"], tree["world_model"]["encoder"]["stem_channels"]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    config = compose([str(file)])
    assert config.loop.warmup_steps == 1024 and config.world_model.encoder["stem_channels"] == 32
    tree["loop"]["warmup_stepz"] = 1
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"config\.yaml: .*loop\.warmup_stepz.*warmup_steps"):
        compose([str(file)])


def test_whole_numbers_may_be_written_as_floats_for_float_keys_only() -> None:
    assert compose([], ["agent.gamma=1"]).agent.gamma == 1.0
    assert isinstance(compose([], ["agent.gamma=1"]).agent.gamma, float)
    assert compose([], ["world_model.optimizer.learning_rate=1e-4"]).world_model.optimizer.learning_rate == 1e-4


def test_every_part_key_is_chosen_by_one_word() -> None:
    for key, kind in PART_KEYS.items():
        for name in registry.names(kind):
            node = to_tree(compose(["tiny"], [f"{key}={name}"]))
            for step in key.split("."):
                node = node[step]
            assert node["name"] == name
            assert list(node)[1:] == list(registry.schema(kind, name))
