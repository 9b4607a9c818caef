"""``resume=auto``: one command that starts a run, goes on with it, or finds that nothing is left to do."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from stormlit.cli.verbs import _parser, _split, main
from stormlit.config.compose import compose
from training import SMALL, assert_same_run, interrupted, newest, refusal, status, train

SHORT = ("loop.warmup_steps=8", "loop.env_steps=24", "checkpoint.every=8", "evaluation.episodes=1")
RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"


def again(root: Path, *words: str) -> list[str]:
    return ["train", *SMALL, *SHORT, "resume=auto", f"run.dir={root}", *words]


def test_one_command_starts_goes_on_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unbroken = train(tmp_path / "a", "run", *SHORT, "resume=auto")
    interrupted(tmp_path / "b", at=19, words=(*SHORT, "resume=auto"))
    run = tmp_path / "b" / "run"
    assert newest(run).name == "step-000000016"
    assert main(again(run.parent, "run.name=run")) == 0
    assert_same_run(unbroken, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(again(run.parent, "run.name=run")) == 0
    captured = capsys.readouterr()
    assert "has taken all its 24 environment steps" in captured.out and captured.err == ""
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_without_a_name_is_found_by_its_own(tmp_path: Path) -> None:
    for budget in (9, 10, 10):
        assert main(again(tmp_path, f"loop.env_steps={budget}")) == 0
    assert [run.name for run in tmp_path.iterdir()] == ["tiny-Catch-s0"]
    assert newest(tmp_path / "tiny-Catch-s0").name == "step-000000010"


def test_what_may_change_on_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "run", *SHORT)
    for words, told in (
        (["agent.gamma=0.9"], "agent.gamma=0.9 is 0.985"),
        (["seed=1", "agent.gamma=0.9"], "seed=1 is 0"),
        (["world_model.sequence_model=gru"], "world_model.sequence_model.name=gru is transformer"),
        (["loop.env_steps=20"], "loop.env_steps=20 is less than the 24"),
    ):
        # A part of another name drops the options of the one before, which SMALL sets.
        base = [
            word for word in again(tmp_path, "run.name=run") if "sequence_model." not in word or "gru" not in str(words)
        ]
        sentence = refusal(capsys, *base, *words)
        assert sentence.startswith("resume=auto: ") and told in sentence and "'run'" in sentence
    assert newest(run).name == "step-000000024" and status(run) == "FINISHED"
    words = ["loop.env_steps=26", "checkpoint.keep=1", "evaluation.greedy=false", "loop.log_every_env_steps=5"]
    assert main(again(tmp_path, "run.name=run", *words)) == 0
    assert newest(run).name == "step-000000026"


def test_the_keys_that_may_change_exist_and_are_documented() -> None:
    from stormlit.config.compose import to_tree
    from stormlit.registry import leaves
    from stormlit.runs.allowed_changes import MAY_CHANGE

    keys = [key for key, _ in leaves(to_tree(compose()))]
    text = RELIABILITY.read_text()
    for prefix in MAY_CHANGE:
        assert any(key.startswith(prefix) for key in keys)
        group = prefix if prefix == "tracking" else prefix.partition(".")[0]
        assert f"`{group}.*`" in text or f"`{prefix}`" in text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, "run", *SHORT)
    for folder in (run / "checkpoints").iterdir():
        (folder / "weights.pt").write_bytes(b"")
    assert "no usable checkpoint" in refusal(capsys, *again(tmp_path, "run.name=run", "loop.env_steps=30"))


def test_the_job_script_is_a_script_whose_commands_parse(tmp_path: Path) -> None:
    (script,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```$", RELIABILITY.read_text(), re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --requeue" in script and "#SBATCH --signal=" in script
    (line,) = (line for line in script.replace("\\\n", " ").splitlines() if "stormlit train" in line)
    words = shlex.split(line.partition("stormlit ")[2].partition("&")[0])
    config = compose(*_split(_parser().parse_args(words).words))
    assert config.resume == "auto" and config.run.name is not None
    # Run with a stand-in for stormlit, it asks for another turn exactly when it was stopped by the warning.
    for code, requeued in ((0, False), (138, True), (143, True), (3, False)):
        called = tmp_path / f"called-{code}"
        tools = tmp_path / f"bin-{code}"
        tools.mkdir()
        for name, body in (("srun", f"exit {code}"), ("scontrol", f"echo $@ > {called}")):
            (tools / name).write_text(f"#!/bin/bash\n{body}\n")
            (tools / name).chmod(0o755)
        environment = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        ended = subprocess.run(["bash"], input=script, text=True, env=environment, cwd=tmp_path, check=False)
        assert called.exists() == requeued
        assert ended.returncode == (0 if requeued else code)
        assert not requeued or json.loads(called.read_text().split()[-1]) == 7
