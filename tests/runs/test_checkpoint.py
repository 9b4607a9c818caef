"""Checkpoints are whole or not there, found by any name, and nothing in them is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import stormlit
from stormlit.cli import main
from stormlit.runs.checkpoint import CheckpointWriter, list_checkpoints, manifest_digest, newest_valid, read_tensors
from stormlit.runs.directory import RunDirectory
from training import newest, read, reseal, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"), "run")


def refused(capsys: pytest.CaptureFixture[str], run: Path, *verbs: str) -> list[str]:
    """The sentence each of the verbs refuses the run's newest checkpoint with."""
    newest_folder = max((run / "checkpoints").glob("step-*"))
    sentences = []
    for verb in verbs:
        words = ["loop.env_steps=60"] if verb == "resume" else []
        capsys.readouterr()
        assert main([verb, str(newest_folder), *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("stormlit: error: "), captured.err
        sentences.append(lines[0])
    assert json.loads((run / "tags.json").read_text())["status"] == "FINISHED"  # nothing was begun
    return sentences


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_bomb_goes_off_where_pickles_are_trusted(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()
    marker.unlink()
    torch.save({"world_model": Bomb(marker)}, tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "verbs"), [("weights.pt", ("resume", "eval", "dream")), ("training-0.pt", ("resume",))]
)
def test_a_pickle_is_never_executed(
    name: str, verbs: tuple[str, ...], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, file = tmp_path / "executed", newest(run) / name
    torch.save({**read(file), "extra": Bomb(marker)}, file)
    reseal(newest(run))
    assert all(name in sentence for sentence in refused(capsys, run, *verbs))
    assert not marker.exists()


def test_a_pickle_among_replay_rows_is_never_executed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, segment = tmp_path / "executed", sorted((run / "replay" / "0").iterdir())[0]
    with np.load(segment) as stored:
        arrays = dict(stored)
    bombs = np.empty(len(arrays["action"]), dtype=object)
    bombs[:] = [Bomb(marker)] * len(bombs)
    np.savez(segment, allow_pickle=True, **{**arrays, "obs": bombs})
    reseal(newest(run))
    assert str(segment) in refused(capsys, run, "resume")[0]
    assert not marker.exists()


def test_a_pickle_in_the_configuration_is_never_executed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "executed"
    file = newest(run) / "config.yaml"
    file.write_text(f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]\n")
    reseal(newest(run))
    assert all("config.yaml" in sentence for sentence in refused(capsys, run, "resume", "eval"))
    assert not marker.exists()


@pytest.mark.parametrize(
    "manifest",
    [
        "[]",
        '{"format": 1, "env_steps": "many", "files": {}}',
        '{"format": 1, "env_steps": 48, "files": {}}',
        '{"format": 1, "env_steps": 48, "files": {"config.yaml": {}, "weights.pt": 3}}',
        '{"format": 1, "env_steps": 48, "files": {"../../config.yaml": {"bytes": 1, "sha256": ""}}}',
    ],
)
def test_a_nonsensical_manifest_is_refused(manifest: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(manifest)
    if isinstance(content, dict):  # with the checksum it should have, so that the rest is looked at
        manifest = json.dumps({**content, "sha256": manifest_digest(content)})
    (newest(run) / "manifest.json").write_text(manifest)
    for sentence in refused(capsys, run, "resume", "eval"):
        assert "step-000000048" in sentence and "checksum" not in sentence and "SHA-256 that it names" not in sentence


def test_playing_needs_no_experience(run: Path) -> None:
    shutil.rmtree(run / "replay")
    assert main(["eval", "run", f"run.dir={run.parent}"]) == 0


def test_a_newer_format_asks_for_an_upgrade(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = newest(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "format": manifest["format"] + 1}))
    for sentence in refused(capsys, run, "resume", "eval", "dream"):
        assert f"format {manifest['format'] + 1}" in sentence and "upgrade" in sentence


@pytest.mark.parametrize(
    ("word", "tensor"),
    [
        ("agent.hidden_dim=32", "agent"),
        ("env.game=Breakout", "env.game"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    word: str, tensor: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["resume", "loop.env_steps=60"], ["eval"]):
        assert main([words[0], "run", f"run.dir={run.parent}", *words[1:], word]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "another configuration" in error and tensor in error


@pytest.mark.parametrize("word", ["env.num_envs=2", "env.id=stormlit-test/Other-v0", "player.context_length=4"])
def test_what_only_going_on_needs_is_checked_too(word: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "run", f"run.dir={run.parent}", "loop.env_steps=60", word]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("damage", ["reshaped", "shortened"])
def test_a_replay_segment_that_does_not_fit_is_named(
    damage: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sorted((run / "replay" / "0").iterdir())[1]
    with np.load(file) as stored:
        arrays = dict(stored)
    if damage == "reshaped":
        np.savez(file, **{**arrays, "obs": arrays["obs"][:, :, :8]})
    else:
        np.savez(file, **{name: array[:-1] for name, array in arrays.items()})
    reseal(newest(run))
    assert str(file) in refused(capsys, run, "resume")[0]


def modules(value: float) -> tuple[torch.nn.Module, torch.nn.Module]:
    return torch.nn.ParameterDict({"value": torch.tensor(value)}), torch.nn.Module()


def write(run: RunDirectory, env_steps: int, value: float, keep: int) -> None:
    writer = CheckpointWriter(run, env_steps)
    writer.begin("seed: 0\n", *modules(value))
    writer.commit(keep)


def value(run: RunDirectory) -> float:
    """Of the newest checkpoint, which is whole."""
    found, damaged = newest_valid(run)
    assert damaged == [] and found.folder == list_checkpoints(run)[-1]
    return float(read_tensors(found.folder / "weights.pt")["world_model"]["value"])


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Do it in a child process that is killed with SIGKILL at its n-th change of the file system; False if it ends."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def changed(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls > call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return changed

        for module, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            setattr(module, name, counted(getattr(module, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(keep: int, tmp_path: Path) -> None:
    for survived in range(60):
        run = RunDirectory(tmp_path / str(survived))
        write(run, 5, 0.5, keep)
        write(run, 10, 1.0, keep)
        killed = killed_at(survived, lambda run=run: write(run, 20, 2.0, keep))
        found = value(run)
        assert found in (1.0, 2.0)
        write(run, 30, 3.0, keep)  # and the next one does not mind what the kill left
        assert value(run) == 3.0
        if not killed:
            assert survived > 10 and found == 2.0
            assert len(list(run.checkpoints.iterdir())) <= keep
            return
    raise AssertionError("the checkpoint never got through")


def test_names_are_on_the_disk_only_after_what_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was synced: files before their rename, the folder before it is renamed and after."""
    seen: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        seen.append(("name", f"{source} -> {target}"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    run = RunDirectory(tmp_path)
    write(run, 10, 1.0, 1)
    temporary, final = run.checkpoints / ".step-000000010.tmp", run.checkpoints / "step-000000010"
    manifest = next(index for index, (_, what) in enumerate(seen) if what.endswith("/manifest.json"))
    written = {("sync", str(temporary / name)) for name in ("config.yaml", "weights.pt")}
    assert written <= set(seen[:manifest])
    assert seen[manifest - 1][0] == "sync" and "/.manifest.json." in seen[manifest - 1][1]
    assert [entry for entry in seen[manifest + 1 :] if ".old.tmp" not in entry[1]] == [
        ("sync", str(temporary)),
        ("name", f"{temporary} -> {final}"),
        ("sync", str(run.checkpoints)),
    ]


def test_a_half_written_checkpoint_is_not_seen(run: Path) -> None:
    half = run / "checkpoints" / "step-000000099"
    half.mkdir()
    shutil.copy(newest(run) / "weights.pt", half)
    assert stormlit.load(str(run)).checkpoint.name == "step-000000048"


def test_a_run_is_found_by_every_name(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = json.loads((run / "run.json").read_text())["run_id"]
    older = run / "checkpoints" / "step-000000024"
    monkeypatch.chdir(run.parent)
    for reference, root, checkpoint in (
        ("run", run.parent, "step-000000048"),
        (run_id, run.parent, "step-000000048"),
        (str(run), Path("elsewhere"), "step-000000048"),
        (str(older), Path("elsewhere"), "step-000000024"),
        (str(older / "weights.pt"), Path("elsewhere"), "step-000000024"),
        ("run/checkpoints/step-000000024", Path("elsewhere"), "step-000000024"),
        ("./run", Path("elsewhere"), "step-000000048"),
        ("run", Path("elsewhere"), "step-000000048"),
    ):
        trained = stormlit.load(reference, run_dir=str(root))
        assert trained.directory.path.resolve() == run and trained.checkpoint.name == checkpoint
    assert main(["eval", str(older / "weights.pt")]) == 0
    assert "step-000000024" in capsys.readouterr().out
