"""Every command of the README is typed as it stands there, with a smaller budget behind it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stormlit.cli import main
from stormlit.cli.lightning_command import FABRIC_ENTRY

README = (Path(__file__).parents[2] / "README.md").read_text()
SHORT_EPISODES = ["evaluation.episodes=1", "evaluation.baselines=[]", "env.max_episode_steps=10"]
SMALL_BUDGET = [
    *SHORT_EPISODES,
    "loop.warmup_steps=4",
    "loop.batch_size=2",
    "loop.batch_length=8",
    "imagination.batch_size=4",
    "tracking=csv",
]
BEHIND = {
    "train": [*SMALL_BUDGET, "loop.env_steps=8"],
    "resume": ["loop.env_steps=12"],
    "eval": SHORT_EPISODES,
    "dream": [],
    "demos": ["--steps", "20"],
    "bench": ["--rounds", "1"],
    "ablate": ["--dry-run"],
    "report": [],
    "scores": [],
    "diagnose": [],
    "components": [],
    "config": [],
}


def commands(program: str) -> list[list[str]]:
    """The words of every command of the README that begins with ``program``, in blocks and in tables, as they come."""
    shown = re.findall(r"```bash\n(.*?)```|\| `(.*?)` \|", README, flags=re.S)
    lines = [line for block, cell in shown for line in (block or cell).splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


@pytest.mark.slow
def test_every_stormlit_command_works_in_the_order_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("world_model: {free_bits: 0.5}\n")
    part = 'from stormlit.nn.encoders.cnn import ConvEncoder\n\n\nclass MyEncoder(ConvEncoder):\n    """Mine."""\n'
    (tmp_path / "my_parts.py").write_text(part)
    shown = commands("stormlit")
    assert {words[1] for words in shown} == set(BEHIND)
    for words in shown:
        exit_code = main([*words[1:], *BEHIND[words[1]]])
        assert exit_code == 0, f"{' '.join(words)}: {capsys.readouterr().err}"
    assert list((tmp_path / "runs" / "mine" / "media").glob("dream-step-*"))


@pytest.mark.slow
@pytest.mark.parametrize("program", ["fabric", "lightning"])
def test_the_launch_commands_train_on_two_processes(program: str, tmp_path: Path) -> None:
    (words,) = commands(program)
    on_cpu = ["cpu" if word == "cuda" else word for word in words]
    entry = [str(FABRIC_ENTRY) if word == "$(stormlit script)" else word for word in on_cpu]
    if program == "lightning":
        entry[entry.index("stormlit") : entry.index("stormlit")] = ["--accelerator", "cpu", "--main-port", "29517"]
    else:
        entry[2:2] = ["--main-port", "29516"]
    entry[0] = str(Path(sys.executable).with_name(program))
    budget = [*SMALL_BUDGET, "loop.env_steps=8", "replay.capacity=100"]
    done = subprocess.run([*entry, *budget], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (checkpoint,) = (tmp_path / "runs").glob("storm-Pong-s0/checkpoints/step-*")
    assert (checkpoint / "training-1.pt").is_file()
