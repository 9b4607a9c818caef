"""Configurations are layered, overridden in any order and checked."""

from __future__ import annotations

import itertools
import operator
from pathlib import Path

import pytest
import yaml

from stormlit import registry
from stormlit.cli.verbs import _parser, _split
from stormlit.config.components import PART_KEYS
from stormlit.config.compose import compose, from_tree, to_tree, to_yaml
from stormlit.config.schema import Config
from stormlit.errors import ConfigError


def at(config: Config, key: str) -> object:
    """The value of a key, of an option of a part too."""
    return operator.attrgetter(key)(config) if "tracking" not in key else config.tracking[key.partition(".")[2]]


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


def test_only_another_part_of_the_same_options_gets_its_own_defaults() -> None:
    """tiny gives its cnn 16 channels; a resnet named after it must not inherit them."""
    default = registry.schema("encoder", "resnet")["stem_channels"]
    assert compose(["tiny"]).world_model.encoder["stem_channels"] == 16 != default
    assert compose(["tiny"], ["world_model.encoder=resnet"]).world_model.encoder["stem_channels"] == default
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
        ["env.id=Some-v0", "env.kwargs={word: '010', number: 8}", "world_model.objectives=[contrastive]"],
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
    assert from_tree(to_tree(config)) == config


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


AS_TYPED = ["my exp #2", "007", "on", "12:30", "1e3", "2024-01-01", "no", "@home", "*star", "a: b", "'quoted'", "[x"]


@pytest.mark.parametrize("typed", AS_TYPED)
@pytest.mark.parametrize("key", ["tracking.experiment", "tracking.uri", "env.id", "run.dir", "run.init_from"])
def test_text_is_taken_as_typed(key: str, typed: str) -> None:
    assert at(compose([], [f"{key}={typed}"]), key) == typed


def test_a_demonstration_is_a_file_as_typed_or_a_list_of_them() -> None:
    for typed, path in (
        ("/data/demo #1.npz", "/data/demo #1.npz"),
        ("007", "007"),
        ("[a b.npz, 007, 'c #1.npz']", ["a b.npz", "007", "c #1.npz"]),
        ("null", None),
    ):
        assert compose([], [f"demonstrations.path={typed}"]).demonstrations.path == path


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("tracking: {experiment: 007}", "tracking.experiment", "007"),
        ("tracking: {experiment: 'my exp #2'}", "tracking.experiment", "my exp #2"),
        ("run: {name: 2024-01-01}", "run.name", "2024-01-01"),
        ("run: {name: }", "run.name", None),
        ("tracking: {uri: ~}", "tracking.uri", None),
        ("demonstrations: {path: [007, b]}", "demonstrations.path", ["007", "b"]),
        ("seed: 010", "seed", 10),
        ("seed: '5'", "seed", 5),
        ("loop: {env_steps: 0012}", "loop.env_steps", 12),
        ("loop: &loop {env_steps: 1e2, batch_size: 7}", "loop.batch_size", 7),
        ("agent: {gamma: .5}", "agent.gamma", 0.5),
        ("agent: {gamma: 1}", "agent.gamma", 1.0),
        ("deterministic: on", "deterministic", True),
    ],
)
def test_a_file_is_read_as_words_are(text: str, key: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    found = at(compose([str(tmp_path / "mine.yaml")]), key)
    assert found == value and type(found) is type(value)


def test_a_part_is_written_the_same_way_as_a_word_and_in_a_file() -> None:
    word = "world_model.encoder={name: resnet, blocks: 3}"
    assert compose([], [word]) == compose([], ["world_model.encoder=resnet", "world_model.encoder.blocks=3"])
    assert compose([], ["loop={env_steps: 5, warmup_steps: 2}"]) == compose(
        [], ["loop.env_steps=5", "loop.warmup_steps=2"]
    )


def test_a_tilde_is_the_home_directory_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose([], ["run.dir=~/runs", "run.init_from=~/runs/first", "demonstrations.path=[~/a.npz,b.npz]"])
    assert (config.run.dir, config.run.init_from) == ("/home/me/runs", "/home/me/runs/first")
    assert config.demonstrations.path == ["/home/me/a.npz", "b.npz"]
    assert compose([], ["run.dir=./~runs"]).run.dir == "./~runs"
    assert compose([], ["run.dir={runs}"]).run.dir == "{runs}"


def test_the_name_of_a_file_may_have_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps name folders after what they change; whatever is a key stays one."""
    monkeypatch.chdir(tmp_path)
    for folder in ("a=1", "seed=1"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.yaml").write_text("seed: 5\n")
    for words in (["a=1/c.yaml"], ["./seed=1/c.yaml"], [str(tmp_path / "seed=1" / "c.yaml")]):
        assert compose(*_split(words)).seed == 5
    assert compose(*_split(["run.init_from=a=1/c.yaml"])).run.init_from == "a=1/c.yaml"


@pytest.mark.parametrize(
    ("line", "options_last"),
    [
        ("dream RUN -o x.gif run.dir=a", "dream RUN run.dir=a -o x.gif"),
        ("dream -o x.gif RUN run.dir=a", "dream RUN run.dir=a -o x.gif"),
        ("bench --rounds 1 tiny loop.batch_size=4", "bench tiny loop.batch_size=4 --rounds 1"),
        ("config --keys tiny seed=1", "config tiny seed=1 --keys"),
        ("import-official -o c a b seed=1", "import-official a b seed=1 -o c"),
        ("demos record random -o x.npz seed=1 --steps 5", "demos record random seed=1 -o x.npz --steps 5"),
        ("demos convert -o b.npz a.npz env.game=Pong", "demos convert a.npz env.game=Pong -o b.npz"),
    ],
)
def test_words_may_come_before_and_after_options(line: str, options_last: str) -> None:
    parsed = _parser().parse_args(line.split())
    assert parsed == _parser().parse_args(options_last.split()) and parsed.words


def test_every_part_key_is_chosen_by_one_word() -> None:
    for key, kind in PART_KEYS.items():
        for name in registry.names(kind):
            node = to_tree(compose(["tiny"], [f"{key}={name}"]))
            for step in key.split("."):
                node = node[step]
            assert node["name"] == name
            assert list(node)[1:] == list(registry.schema(kind, name))


def test_what_is_done_to_one_configuration_is_not_in_the_next() -> None:
    """Though their defaults are read once."""
    first, untouched = compose(["tiny"]), to_yaml(compose(["tiny"]))
    first.env.kwargs["cell"] = 3
    first.world_model.encoder["stem_channels"] = 5
    first.evaluation.baselines.append("constant")
    registry.schema("encoder", "cnn")["stem_channels"] = 9
    assert to_yaml(compose(["tiny"])) == untouched
