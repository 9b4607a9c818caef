"""A damaged checkpoint is passed over, with a sentence, for the one before it; a checkpoint that is named is not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

import stormlit
import stormlit.runs.checkpoint
import stormlit.runs.snapshot
from stormlit.cli import main
from training import assert_same_run, newest, refusal, reseal, train

WORDS = ("loop.warmup_steps=8", "loop.env_steps=30", "checkpoint.every=8", "checkpoint.keep=3", "evaluation.episodes=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"), "run", *WORDS)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_resume_falls_back_and_ends_as_if_nothing_had_happened(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, name = newest(run), "weights.pt"
    damage(broken / name)
    capsys.readouterr()
    assert main(["resume", "run", f"run.dir={run.parent}"]) == 0
    told = capsys.readouterr().err
    assert f"{broken / name} is damaged" in told and "falling back to the checkpoint before it" in told
    assert f"kept the damaged checkpoint {broken.name} as damaged-{broken.name}" in told
    assert (broken.parent / f"damaged-{broken.name}" / name).is_file()
    assert_same_run(trained, run)


def test_a_run_that_cannot_be_written_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(newest(run) / "weights.pt")

    def refuse(folder: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(stormlit.runs.snapshot, "set_aside", refuse)
    assert main(["resume", "run", f"run.dir={run.parent}"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"stormlit: error: run.dir={run.parent}: cannot write there (Read-only file system)"


def test_a_damaged_segment_takes_the_checkpoints_that_need_it(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = sorted((run / "replay" / "0").iterdir())
    damage(segments[-2])  # rows 16 to 24, which the checkpoints at 24 and 30 need
    capsys.readouterr()
    assert main(["resume", "run", f"run.dir={run.parent}"]) == 0
    told = capsys.readouterr().err
    assert told.count("falling back") == told.count("kept the damaged checkpoint") == 2
    assert_same_run(trained, run)


def test_playing_falls_back_and_leaves_the_run_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = newest(run)
    (broken / "weights.pt").write_bytes((broken / "weights.pt").read_bytes()[:-1])
    folders = sorted((run / "checkpoints").iterdir())
    capsys.readouterr()
    for verb in ("eval", "dream"):
        assert main([verb, "run", f"run.dir={run.parent}"]) == 0
        captured = capsys.readouterr()
        assert captured.err.count("falling back") == 1 and str(broken) in captured.err
        assert "step-000000024" in captured.out
    assert sorted((run / "checkpoints").iterdir()) == folders
    assert stormlit.load("run", run_dir=str(run.parent)).checkpoint.name == "step-000000024"
    for verb in ("eval", "dream", "resume"):
        assert str(broken) in refusal(capsys, verb, str(broken))  # this one was asked for, and no other


def test_what_the_manifest_does_not_list_is_not_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = newest(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["files"]["replay-0.json"]
    file.write_text(json.dumps(manifest))
    reseal(newest(run))
    sentence = refusal(capsys, "resume", "run", f"run.dir={run.parent}", "loop.env_steps=40")
    assert f"{file} is damaged: it does not list replay-0.json" in sentence


def test_when_none_is_left_there_is_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run / "checkpoints").iterdir():
        damage(folder / "weights.pt")
    for verb in ("resume", "eval", "dream"):
        sentence = refusal(capsys, verb, "run", f"run.dir={run.parent}")
        assert "no usable checkpoint" in sentence and str(newest(run) / "weights.pt") in sentence
    sentence = refusal(capsys, "train", "tiny", f"run.init_from={run}", f"run.dir={run.parent}", "run.name=other")
    assert "no usable checkpoint" in sentence


def test_the_trackers_run_is_the_checkpoints(run: Path) -> None:
    """Another number in run.json, by whatever accident, does not make another run of it."""
    identity = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**identity, "run_id": "another"}))
    assert main(["resume", "run", f"run.dir={run.parent}", "loop.env_steps=31"]) == 0
    assert json.loads((run / "run.json").read_text()) == identity
    assert json.loads((run / "tags.json").read_text())["run_id"] == identity["run_id"]
