"""Whatever is wrong with the input is told in one sentence on one line, with exit code 2 and no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from conftest import RunStormlit
from stormlit.cli import main
from training import SMALL, refusal, refused_training


@pytest.mark.parametrize(
    ("word", "told"),
    [
        # keys
        ("env.gaem=Pong", ["env.gaem", "did you mean", "game", "id", "size"]),
        ("world_model.encodr=cnn", ["world_model.encodr", "did you mean", "encoder", "decoder"]),
        ("batch_size=3", ["batch_size", "did you mean"]),
        ("seed.x=1", ["seed", "x"]),
        ("env=Pong", ["env", "env.game", "env.id"]),
        ("=3", ["=3", "KEY=VALUE"]),
        # parts and their options
        ("world_model.encoder=resnt", ["world_model.encoder=resnt", "did you mean 'resnet'", "cnn, patches, resnet"]),
        ("world_model.encoder.name=resnt", ["world_model.encoder", "did you mean 'resnet'", "cnn, patches, resnet"]),
        ("tracking=mlfow", ["tracking=mlfow", "did you mean 'mlflow'", "csv, mlflow, none"]),
        ("world_model.encoder=", ["world_model.encoder", "cnn, patches, resnet"]),
        ("world_model.encoder=[cnn]", ["world_model.encoder", "cnn, patches, resnet"]),
        (
            "world_model.encoder.stem_chanels=3",
            ["world_model.encoder.stem_chanels", "did you mean 'stem_channels'", "final_width"],
        ),
        ("world_model.encoder.blocks=3", ["world_model.encoder.blocks", "cnn", "stem_channels, final_width"]),
        ("agent.agent_state.size=3", ["agent.agent_state.size", "no options"]),
        # types
        ("loop.env_steps=abc", ["loop.env_steps", "abc"]),
        ("loop.env_steps=1.5", ["loop.env_steps", "1.5"]),
        ("seed=", ["seed"]),
        ("seed=[1", ["seed", "[1"]),
        ("seed=${nothing}", ["seed", "nothing"]),
        ("world_model.encoder.stem_channels=many", ["world_model.encoder.stem_channels", "many"]),
        ("agent.actor.zero_output=3.5", ["agent.actor.zero_output", "3.5"]),
        ("evaluation.baselines=null", ["evaluation.baselines"]),
        ("evaluation.baselines=[[random]]", ["evaluation.baselines", "expected one"]),
        # whole numbers are decimal
        ("seed=1:30", ["seed", "1:30", "Integer"]),
        ("seed=0x10", ["seed", "0x10", "Integer"]),
        (f"seed={'9' * 5000}", ["seed", "999", "Integer"]),
        # values that are none
        ("seed=???", ["seed=???", "leaves the value open"]),
        ("run.dir=a${b", ["run.dir", "'${' begins a reference", "${b"]),
        ("agent.agent_state=a${b", ["agent.agent_state", "both, hidden, latent"]),
        ("run.dir=", ["run.dir", "not empty"]),
        ("demonstrations.path=[a.npz,'']", ["demonstrations.path", "not empty"]),
        ("run.dir=~nosuchuser/x", ["run.dir=~nosuchuser/x", "no home directory", "./~nosuchuser/x"]),
        ("world_model.encoder={name: resnt}", ["world_model.encoder=resnt", "did you mean 'resnet'"]),
        ("world_model.encoder={name: resnet, blok: 3}", ["world_model.encoder.blok", "did you mean 'blocks'"]),
        ("world_model.encoder={name: resnet", ["world_model.encoder", "cannot be read"]),
        (f"run.name={'x' * 256}", ["run.name", "256 bytes", "at most 200"]),
        ("env.id=a:b:c", ["env.id=a:b:c"]),
        # keys without their equals sign
        ("seed", ["'seed' is a key", "write seed=VALUE"]),
        ("env", ["'env' is a key", "write env.game=VALUE"]),
        ("world_model.encoder.stem_channels", ["is a key", "write world_model.encoder.stem_channels=VALUE"]),
        # choices
        ("precision=fp32", ["precision", "fp32", "32-true", "bf16-mixed", "16-mixed"]),
        ("imagination.start=middle", ["imagination.start", "middle", "prior", "posterior"]),
        ("env.reward_transform=sgn", ["env.reward_transform", "sgn", "identity", "sign"]),
        ("evaluation.baselines=[randm]", ["evaluation.baselines", "did you mean 'random'", "constant"]),
        # ranges
        ("loop.env_steps=0", ["loop.env_steps=0", "1"]),
        ("agent.gamma=1.5", ["agent.gamma=1.5", "0 to 1"]),
        ("agent.gamma=nan", ["agent.gamma=nan", "0 to 1"]),
        ("seed=-1", ["seed=-1", "0"]),
        ("env.size=4", ["env.size=4", "8"]),
        ("env.atari.sticky_actions=2", ["env.atari.sticky_actions=2", "expected 0 to 1"]),
        ("run.name=../above", ["run.name", "../above"]),
        ("world_model.optimizer.learning_rate=-1", ["world_model.optimizer.learning_rate=-1"]),
        ("world_model.sequence_model.num_heads=0", ["world_model.sequence_model.num_heads"]),
        # pairs that do not fit together
        ("world_model.sequence_model.num_heads=7", ["world_model.hidden_dim=16", "num_heads=7"]),
        ("loop.batch_length=65", ["loop.batch_length=65", "max_length=16"]),
        ("imagination.horizon=13", ["imagination.horizon", "17", "max_length=16"]),
        ("world_model.encoder.final_width=9", ["env.size=16", "final_width=9", "at least 18"]),
        ("world_model.reward_low=30", ["world_model.reward_low", "world_model.reward_high"]),
        ("agent.return_normalizer.low=96", ["agent.return_normalizer.low", "agent.return_normalizer.high"]),
        # environments
        ("env.game=Pongg", ["env.game=Pongg", "did you mean 'Pong'"]),
        ("env.id=stormlit/Cach-v0", ["env.id=stormlit/Cach-v0", "did you mean 'stormlit/Catch-v0'"]),
        ("env.observations=[pole]", ["env.observations", "a Dict or a Tuple"]),
        ("world_model.encoder=mlp", ["world_model.encoder=mlp", "world_model.vector_encoder"]),
        # hardware
        ("precision=16-mixed", ["precision=16-mixed", "GPU", "bf16-mixed", "32-true"]),
        ("accelerator=mps", ["accelerator", "mps", "Apple's GPUs are not supported", "choose cpu"]),
        # configurations
        ("tniy", ["tniy", "did you mean 'tiny'", "quickstart, storm, tiny, upndown"]),
        ("nowhere/to/be/found.yaml", ["nowhere/to/be/found.yaml", "does not exist"]),
        ("nowhere=1/c.yaml", ["the configuration file nowhere=1/c.yaml does not exist"]),
        ("x" * 300, ["there is no configuration 'xxx"]),
    ],
)
def test_bad_words_are_refused(word: str, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refused_training(capsys, tmp_path, word)
    for part in told:
        assert part in sentence


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"env: [1\n a: }", ["readable YAML"]),
        (b"\xff\xfe\x00\x80", ["readable YAML"]),
        (b"seed: 1\nseed: 2\n", ["seed"]),
        (b"- seed\n- 3\n", ["mapping"]),
        (b"just words", ["just words"]),
        (b"lop: {batch_size: 3}", ["lop", "did you mean 'loop'"]),
        (b"world_model: {encoder: {name: resnet, final_wdth: 4}}", ["final_wdth", "did you mean 'final_width'"]),
        (b"world_model: {encoder: }", ["world_model.encoder", "cnn, patches, resnet"]),
        (b"loop: 3", ["loop", "loop.env_steps"]),
        (b"loop: {batch_size: abc}", ["loop.batch_size", "abc"]),
        (b"seed: !!python/object/apply:os.getcwd []", ["readable YAML"]),
        (b"", ["empty"]),
        (b"env: &env {game: *env}", ["recursive"]),
        (b"seed: " + b"[" * 5000 + b"]" * 5000, ["nested too deeply"]),
        (b"env: {game: \x00}", ["readable YAML"]),
        (b"seed: !!binary aaaa", ["readable YAML"]),
        (b"seed: ???", ["seed=???", "leaves the value open"]),
        (b"run: {dir: ''}", ["run.dir", "not empty"]),
        (b'run: {dir: "a\\0b"}', ["run.dir", "not empty"]),
        (b"run: {name: [a]}", ["run.name", "expected one"]),
        (b"evaluation: {baselines: [[random]]}", ["evaluation.baselines", "expected one"]),
    ],
)
def test_bad_files_are_refused_and_named(
    content: bytes, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    sentence = refusal(capsys, "config", str(file))
    # A value is only known to be wrong once all layers are put together.
    for part in told if "abc" in told else ["mine.yaml", *told]:
        assert part in sentence


def test_a_folder_and_an_unreadable_file_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name in ("folder.yaml", "loop.yaml"):
        assert name in refusal(capsys, "config", str(tmp_path / name))


class _Unsupported(gymnasium.Env[np.ndarray, Any]):
    spaces: ClassVar[dict[str, gymnasium.Space[Any]]] = {
        "unbounded Box float32 (2,)": gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
        "Text": gymnasium.spaces.Text(3),
    }

    def __init__(self, actions: str) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.action_space = self.spaces[actions]


@pytest.mark.parametrize("actions", _Unsupported.spaces)
def test_unsupported_actions_are_refused(
    actions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gymnasium.envs.registration, "registry", dict(gymnasium.registry))
    gymnasium.register("stormlit-test/Unsupported-v0", entry_point=_Unsupported, kwargs={"actions": actions})
    sentence = refused_training(capsys, tmp_path, "env.id=stormlit-test/Unsupported-v0")
    assert "env.id=stormlit-test/Unsupported-v0" in sentence and actions in sentence and "Discrete" in sentence


@pytest.mark.parametrize("verb", ["resume", "eval", "dream"])
def test_a_run_that_does_not_exist_is_refused(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    sentence = refusal(capsys, verb, "nothing", f"run.dir={root}")
    assert "nothing" in sentence and str(root) in sentence and "no runs there" in sentence
    for name in ("first-run", "second"):
        (root / name).mkdir(parents=True)
        (root / name / "run.json").write_text(f'{{"name": "{name}", "run_id": "id-of-{name}"}}')
    sentence = refusal(capsys, verb, "frist-run", f"run.dir={root}")
    assert "frist-run" in sentence and "did you mean 'first-run'" in sentence and "first-run, second" in sentence
    for reference in ("second", "id-of-second", str(root / "second")):
        assert "'second'" in refusal(capsys, verb, reference, f"run.dir={root}")  # it has no checkpoint yet
    assert "not a stormlit checkpoint" in refusal(capsys, verb, str(tmp_path), f"run.dir={root}")


def test_a_configuration_after_a_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "eval", "some-run", "tiny")
    assert "tiny" in sentence and "KEY=VALUE" in sentence


def test_an_unknown_kind_of_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = refusal(capsys, "components", "encodr")
    assert "encodr" in sentence and "did you mean 'encoder'" in sentence and "sequence_model" in sentence


def test_runs_cannot_be_kept_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "run.dir" in refusal(capsys, "train", *SMALL, f"run.dir={file}")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["train", "--seed", "1"], "--seed is no option but a key: write seed=1"),
        (["train", "tiny", "--seed=1"], "--seed=1 is no option but a key: write seed=1"),
        (["train", "--loop.env-steps", "9"], "--loop.env-steps is no option but a key: write loop.env_steps=9"),
        (["resume", "run", "--env"], "--env is no option but a key: write env.game=VALUE"),
    ],
)
def test_a_key_written_as_an_option_is_answered_with_the_word(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"stormlit {words[0]}: error: {hint}\n")


def test_a_key_and_its_value_as_two_words_are_answered_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "train", "seed", "1").endswith("write seed=1")
    assert refusal(capsys, "resume", "run", "seed", "1").endswith("write seed=1")


@pytest.mark.parametrize("words", [["trian"], [], ["train", "--epochs", "3"], ["resume"]])
def test_unknown_commands_and_options_end_with_the_same_code(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "stormlit" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_ends_with_the_sentence_and_the_code(run_stormlit: RunStormlit, tmp_path: Path) -> None:
    for words, told in (
        (["train", "tiny", "env.game=Pongg"], "did you mean 'Pong'"),
        (["config", "tniy"], "did you mean 'tiny'"),
        (["eval", "nothing"], "no run 'nothing'"),
    ):
        ended = run_stormlit(*words)
        assert ended.returncode == 2
        assert ended.stdout == "" and len(ended.stderr.splitlines()) == 1
        assert told in ended.stderr
    assert list(tmp_path.iterdir()) == []
