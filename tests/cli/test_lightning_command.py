"""``lightning run`` is translated for ``fabric run``; everything else goes to lightning-sdk."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from stormlit.cli import lightning_command
from stormlit.cli.lightning_command import FABRIC_ENTRY, fabric_arguments, main

VALUE_OPTIONS = {"--accelerator", "--devices", "--precision", "--strategy"}
ENTRY = str(FABRIC_ENTRY)


@pytest.mark.parametrize(
    ("given", "forwarded"),
    [
        ("train.py", "train.py"),
        ("model train.py", "train.py"),
        ("model model train.py", "model -- train.py"),
        ("train.py model", "train.py -- model"),
        ("train.py seed=1 --fast", "train.py -- seed=1 --fast"),
        ("--devices 2 train.py seed=1", "--devices 2 train.py -- seed=1"),
        ("model --devices=2 --strategy ddp train.py a", "--devices=2 --strategy ddp train.py -- a"),
        ("--devices model train.py", "--devices model train.py"),
        ("train.py --devices 3", "train.py -- --devices 3"),
        ("train.py -- --devices 3", "train.py -- --devices 3"),
        ("train.py a -- b", "train.py -- a -- b"),
        ("--devices 2 -- train.py --devices 3", "--devices 2 -- train.py --devices 3"),
        ("stormlit", ENTRY),
        ("model stormlit train storm", f"{ENTRY} -- train storm"),
        ("--devices 2 stormlit train env.game=Pong", f"--devices 2 {ENTRY} -- train env.game=Pong"),
        ("-- stormlit train", f"-- {ENTRY} train"),
        ("--strategy stormlit train.py stormlit", "--strategy stormlit train.py -- stormlit"),
        ("./stormlit", "./stormlit"),
        ("", ""),
        ("--help", "--help"),
        ("--devices", "--devices"),
        ("--devices 2", "--devices 2"),
    ],
)
def test_arguments_are_translated(given: str, forwarded: str) -> None:
    assert fabric_arguments(given.split(), VALUE_OPTIONS) == forwarded.split()


def test_stormlit_stands_for_a_file_alone_in_its_folder() -> None:
    assert {path.name for path in FABRIC_ENTRY.parent.glob("*.py")} == {"__init__.py", FABRIC_ENTRY.name}


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_names_what_it_forwards_to(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "fabric run" in printed and "lightning-sdk" in printed


def _install(monkeypatch: pytest.MonkeyPatch, distribution: str, command: Callable[[], object]) -> None:
    entry = SimpleNamespace(dist=SimpleNamespace(name=distribution), load=lambda: command)
    found = {("console_scripts", "lightning"): [entry]}
    monkeypatch.setattr(metadata, "entry_points", lambda *, group, name: found[group, name])


@pytest.mark.parametrize("distribution", ["lightning-sdk", "lightning_sdk"])
@pytest.mark.parametrize(("returned", "exit_code"), [(None, 0), (7, 7)])
def test_other_subcommands_go_to_lightning_sdk(
    distribution: str, returned: int | None, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(monkeypatch, distribution, lambda: returned)
    assert main(["login"]) == exit_code


def test_another_subcommand_without_lightning_sdk_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _install(monkeypatch, "stormlit", lambda: pytest.fail("the command called itself"))
    assert main(["login"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning login: ") and "pip install lightning-sdk" in line


def test_importing_the_command_does_not_import_torch() -> None:
    # Loaded as a file, so that only the command's own imports count.
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]); "
        "sys.exit(' '.join({'torch', 'lightning', 'click'} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", code, str(lightning_command.__file__)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


SCRIPT = """
import json, sys
from pathlib import Path
import torch
from lightning.fabric import Fabric

fabric = Fabric()
total = fabric.all_reduce(torch.tensor(1.0), reduce_op="sum").item()
seen = {"arguments": sys.argv[1:], "world_size": fabric.world_size, "total": total}
Path(f"rank{fabric.global_rank}.json").write_text(json.dumps(seen))
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()  # else its threads now and then abort the interpreter as it ends
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "processes"), [(["--devices", "1"], 1), (["model", "--devices=2", "--strategy", "ddp"], 2)]
)
def test_a_script_is_really_launched(options: list[str], processes: int, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = ["run", *options, "--accelerator", "cpu", "--main-port", str(port), "train.py", "a=b", "--devices", "3"]
    launched = subprocess.run(
        [sys.executable, "-c", "from stormlit.cli.lightning_command import main; raise SystemExit(main())", *words],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    seen = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("rank*.json"))]
    assert seen == [{"arguments": ["a=b", "--devices", "3"], "world_size": processes, "total": processes}] * processes
