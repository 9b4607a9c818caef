"""The examples of docs/extending.md, used as somebody outside the package would: a module in the working directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import stormlit
from small import BOTH, IMAGE, imagine, random_batch, small_agent, small_world_model
from stormlit.cli import main
from stormlit.config.components import PART_KEYS, PART_LISTS
from stormlit.config.compose import compose, to_yaml
from stormlit.errors import ConfigError
from training import SMALL

DOCS = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
EXAMPLES = {
    "world_model.encoder": "mine:PatchEncoder",
    "world_model.decoder": "mine:PatchDecoder",
    "world_model.vector_encoder": "mine:FourierEncoder",
    "world_model.vector_decoder": "mine:LinearDecoder",
    "world_model.latent": "mine:LaplaceLatent",
    "world_model.sequence_model": "mine:SmallGRU",
    "world_model.reward_head": "mine:OneLayerHead",
    "world_model.continuation_head": "mine:OneLayerHead",
    "agent.agent_state": "mine:GatedState",
    "agent.policy": "mine:TemperedPolicy",
    "agent.actor": "mine:OneLayerHead",
    "agent.critic": "mine:OneLayerHead",
    "tracking": "mine:JsonLinesTracker",
    "world_model.objectives": "mine:InverseDynamics",
    "replay.sampler": "mine:NewestFirst",
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the examples in ``mine.py``."""
    blocks = re.findall(r"```python\n# mine\.py\n(.*?)```", DOCS, re.DOTALL)
    assert len(blocks) == 11
    (tmp_path / "mine.py").write_text("\n\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for module in ("mine", "theirs"):
        sys.modules.pop(module, None)


def error_of(*words: str) -> str:
    with pytest.raises(ConfigError) as raised:
        compose(["tiny"], words)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("key", [key for key in EXAMPLES if key != "tracking"])
def test_each_example_keeps_the_laws_and_works_beside_the_bundled_parts(key: str) -> None:
    assert stormlit.check_part({**PART_KEYS, **PART_LISTS}[key], EXAMPLES[key]) == []
    owner, _, argument = key.partition(".")
    part = {argument: EXAMPLES[key] if argument == "sequence_model" else {"name": EXAMPLES[key]}}
    if key in PART_LISTS:
        part = {argument: [EXAMPLES[key]]}
    seen = BOTH if "vector" in key else None
    world_model = small_world_model(observations=seen or IMAGE, **part if owner == "world_model" else {})
    agent = small_agent(world_model, **part if owner == "agent" else {})
    batch = random_batch(observations=seen)
    world_model.losses(batch).total.backward()
    trajectory = imagine(world_model, agent, batch, horizon=3, from_posterior=True)
    agent.losses(trajectory).total.backward()


@pytest.mark.usefixtures("mine")
def test_a_tracker_is_told_what_it_derives_from() -> None:
    assert stormlit.check_part("tracker", "mine:JsonLinesTracker") == []
    sentence = "GatedState does not derive from stormlit.tracking.base.Tracker, as every tracker must"
    assert error_of("tracking=mine:GatedState") == f"tracking=mine:GatedState: {sentence}"


def test_the_examples_cover_every_kind_of_part() -> None:
    assert EXAMPLES.keys() == {*PART_KEYS, *PART_LISTS}


@pytest.mark.usefixtures("mine")
def test_the_name_stays_as_typed_and_its_options_are_checked_like_any_other() -> None:
    config = compose(["tiny"], ["world_model.encoder=mine:PatchEncoder", "world_model.encoder.patch=8"])
    assert config.world_model.encoder == {"name": "mine:PatchEncoder", "patch": 8, "width": 32}
    Path("saved.yaml").write_text(to_yaml(config))
    assert compose(["./saved.yaml"]) == config
    sentence = error_of("world_model.encoder=mine:PatchEncoder", "world_model.encoder.patches=8")
    assert "world_model.encoder.patches" in sentence and "did you mean 'patch'" in sentence
    assert "Integer" in error_of("world_model.encoder=mine:PatchEncoder", "world_model.encoder.patch=many")


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "mine:PatchEncoderr",
            r"mine has no class 'PatchEncoderr' \(did you mean 'PatchEncoder'\?\); it has PatchEncoder, ",
        ),
        ("mine:", r"no encoder is called .*; choose one of cnn, patches, resnet$"),
        ("nowhere:PatchEncoder", r"there is no module 'nowhere' in /.* or on the Python path$"),
        ("mine.deeper:PatchEncoder", r"there is no module 'mine.deeper' in /.*$"),
        (":PatchEncoder", r"no encoder is called ':PatchEncoder'"),
        ("theirs:Part", r"theirs cannot be imported: ModuleNotFoundError: No module named 'not_installed'$"),
        ("mine:math", r"mine has no class 'math'"),
    ],
)
def test_a_module_or_a_class_that_is_not_there_is_one_sentence(name: str, sentence: str) -> None:
    Path("theirs.py").write_text("import not_installed\n")
    assert re.search(rf"^world_model.encoder=.*: {sentence}", error_of(f"world_model.encoder={name}"))


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("code", ["class Part(:\n", "raise SystemError('not today')\n", "1 / 0\n"])
def test_a_module_that_fails_is_one_sentence(code: str) -> None:
    Path("theirs.py").write_text(code)
    assert "world_model.encoder=theirs:Part: theirs cannot be imported: " in error_of("world_model.encoder=theirs:Part")


@pytest.mark.usefixtures("mine")
def test_a_part_of_another_kind_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^world_model.encoder=mine:PatchDecoder cannot be built .*'obs_shape'"):
        small_world_model(encoder={"name": "mine:PatchDecoder"})


@pytest.mark.usefixtures("mine")
def test_a_part_is_checked_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "head", "mine:OneLayerHead", "--check"]) == 0
    assert capsys.readouterr().out.startswith("head 'mine:OneLayerHead' holds:\n")
    Path("theirs.py").write_text(
        "from mine import *\n\nclass Part(OneLayerHead):\n    def forward(self, x):\n        return x\n"
    )
    assert main(["components", "head", "theirs:Part", "--check"]) == 2
    assert "head 'theirs:Part' gives (2, 32) where (2, 5) is expected for (2, 32)" in capsys.readouterr().err
    assert main(["components", "head", "--check"]) == 2
    assert "KIND NAME --check" in capsys.readouterr().err
    assert main(["components", "encoder", "mine:PatchEncoder"]) == 0
    assert "patch = 4" in capsys.readouterr().out


CHAT = """
import gymnasium
from gymnasium import spaces


class Chat(gymnasium.Env):
    observation_space = spaces.Text(8, charset="abc")
    action_space = spaces.Dict({"say": spaces.Discrete(3), "loud": spaces.Box(0.0, 2.0, (2,))})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.text = "ab"
        return self.text, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.text += "abc"[action["say"]]
        return self.text, float(action["loud"].sum()), len(self.text) == 8, False, {}


gymnasium.register("Chat-v0", entry_point=Chat)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("mine")
def test_the_example_wrapper_makes_text_learned_from_and_mixed_actions_taken() -> None:
    Path("theirs.py").write_text(CHAT)
    words = ("env.id=theirs:Chat-v0", "env.wrappers=[mine:Reader]", "run.name=run", "tracking=none")
    sizes = [word for word in SMALL[2:] if not word.startswith(("env.", "run.", "tracking"))]
    assert main(["train", "cartpole", *sizes, *words, "loop.env_steps=24", "evaluation.baselines=[]"]) == 0
    assert main(["resume", "run", "loop.env_steps=28"]) == 0
    assert main(["dream", "run", "--dreams", "1"]) == 0
    trained = stormlit.load("run")
    assert (trained.world_model.observation_space.width, trained.agent.action_space.dims) == (3, 5)


def command(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stormlit", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def output_of(folder: Path, *words: str, code: int = 0) -> str:
    process = command(folder, *words)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


@pytest.mark.slow
def test_parts_of_one_s_own_are_trained_killed_resumed_evaluated_and_dreamt_with(mine: Path) -> None:
    sizes = [
        word
        for word in SMALL[2:]
        if not word.startswith(("world_model.encoder", "world_model.decoder", "world_model.l", "world_model.seq"))
    ]
    words = ["train", "tiny", "env.id=mine:Corridor-v0", "env.isolation=process", "run.name=mine"]
    words += [f"{key}={name}" for key, name in EXAMPLES.items()] + [*sizes, "loop.env_steps=80", "checkpoint.every=10"]
    process = command(mine, *words)
    checkpoints = mine / "runs" / "mine" / "checkpoints"
    deadline = time.monotonic() + 600
    while not list(checkpoints.glob("step-000000030*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()

    output_of(mine, "resume", "mine")
    logged = [json.loads(line) for line in (checkpoints.parent / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in logged if "agent/entropy" in line]
    assert steps[-1] == 80 and steps == sorted(set(steps))  # each once
    assert (checkpoints / "step-000000080").is_dir()
    assert "written to" in output_of(mine, "eval", "mine")
    assert "dream video" in output_of(mine, "dream", "mine", "--dreams", "1", "-o", "dream.gif")
    trained = stormlit.load("mine")
    assert type(trained.world_model.encoder).__name__ == "PatchEncoder"

    (mine / "mine.py").rename(mine / "gone.py")
    sentence = output_of(mine, "eval", "mine", code=2)
    assert sentence.count("\n") == 1 and "replay.sampler=mine:NewestFirst: there is no module 'mine'" in sentence
