"""The benchmarks of a GPU: their steps on a CPU at small sizes, where little is installed, and cut off."""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from borrowed import borrowed_python
from stormlit.config.compose import compose

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "performance.md").read_text()
CPU = torch.device("cpu")


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with what docs/performance.md says that has to be carried along."""
    [line] = re.findall(r"^pip download .*$", PAGE, re.MULTILINE)
    carried = re.findall(r'"([a-z-]+)[^"]*"', line)
    python = borrowed_python(tmp_path_factory.mktemp("borrowed") / "venv", carried)
    for there, name in ((True, "torch"), (False, "mlflow"), (False, "pandas"), (False, "imageio_ffmpeg")):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"
        assert (subprocess.run([str(python), "-c", code]).returncode == 0) == there, name
    return str(python)


def start(python: str, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """The protocol in a process of its own, with nothing of this one's environment but the threads."""
    environment = {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    script = str(REPOSITORY / "benchmarks" / "gpu_protocol.py")
    options = ["--device", "cpu", "--sizes", "small", "--out", "out", "--run-dir", "runs"]
    return subprocess.Popen([python, script, *options, *words], env=environment, cwd=folder, stderr=subprocess.PIPE)


def results(folder: Path) -> dict[str, Any]:
    return {file.stem: json.loads(file.read_text()) for file in (folder / "out").glob("*.json")}


@pytest.mark.slow
def test_every_step_runs_where_little_is_installed(borrowed: str, tmp_path: Path) -> None:
    steps = ("parity", "bench-bf16", "train")
    first = start(borrowed, tmp_path, "--only", *steps)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/protocol-small/checkpoints/step-*/manifest.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 128 + signal.SIGTERM
    [piece] = results(tmp_path)["train"]["numbers"]["pieces"]
    assert 0 < piece["env_steps"] < 400

    again = start(borrowed, tmp_path, "--only", *steps)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert told.count(b"is there already") == 2
    found = results(tmp_path)
    assert found.keys() == set(steps)
    for step, result in found.items():
        assert {"made_with", "command", "not_compiled", "cuda_graphs_skipped"} <= result.keys(), step
        assert str(tmp_path) not in json.dumps(result)
    assert found["bench-bf16"]["settings"][0]["compiled"] is False
    assert found["bench-bf16"]["settings"][0]["precision"] == "bf16-mixed"
    numbers = found["train"]["numbers"]
    assert [one["env_steps"] for one in numbers["pieces"]] == [piece["env_steps"], 400]
    assert numbers["seconds"] > piece["seconds"] > 0
    assert [len(played["episodes"]) for played in numbers["evaluation"]] == [4]

    for name in ("bench", "parity", "train"):
        page = f"<!-- table: {name} -->\n<!-- end of table -->"
        head, _, *rows = module("tables").render(page, list(found.values())).splitlines()[1:-1]
        assert rows and all(row.count("|") == head.count("|") for row in rows)


@pytest.mark.slow
def test_a_step_that_fails_or_takes_too_long_is_told_and_costs_no_other(borrowed: str, tmp_path: Path) -> None:
    failing = start(borrowed, tmp_path, "--only", "official-fp32", "parity", "--official", "nowhere")
    _, told = failing.communicate(timeout=300)
    assert failing.returncode == 1, told
    assert results(tmp_path).keys() == {"parity"}
    assert "nowhere" in told.decode() or (tmp_path / "out" / "official-fp32.log").stat().st_size > 0
    slow = start(borrowed, tmp_path, "--only", "bench-fp32", "--seconds", "0.5")
    _, told = slow.communicate(timeout=300)
    assert (slow.returncode, results(tmp_path).keys()) == (75, {"parity"}), told


def test_a_child_is_asked_to_stop_before_it_is_made_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, log = module("gpu_protocol"), tmp_path / "log"
    assert protocol.run_python(["-c", "print('hello'); raise SystemExit(7)"], log, 60) == 7
    assert log.read_text() == "hello\n"
    monkeypatch.setattr(protocol, "GRACE", 30)
    saving = "import signal, time; signal.signal(15, lambda *_: (print('saved', flush=True), exit(0)));"
    assert protocol.run_python(["-c", f"{saving} print('ready', flush=True); time.sleep(60)"], log, 1) is None
    assert "saved" in log.read_text() or "ready" not in log.read_text()  # a loaded machine may not have started it
    monkeypatch.setattr(protocol, "GRACE", 0.3)
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    assert protocol.run_python(["-c", stubborn], log, 0.3) is None


def test_parity_is_exact_with_itself_and_finds_what_rounds() -> None:
    protocol = module("gpu_protocol")
    words = protocol.SMALL.split()
    subject = protocol.Parity(compose(words[:1], [*words[1:], *protocol.PARITY]), 2, 8)
    reference = subject.numbers(CPU, mixed=False)
    again = protocol.differences(reference, subject.numbers(CPU, mixed=False))
    rounded = protocol.differences(reference, subject.numbers(CPU, mixed=True))
    assert again.keys() >= {"posterior", "imagined hidden states", "world model gradients", "agent loss: value"}
    assert all(found["absolute"] == 0 for found in again.values())
    touched = {name for name, found in rounded.items() if found["absolute"] > 0}
    assert touched >= again.keys() - {"return scale"}
    assert all(found["relative"] < 0.1 for found in rounded.values())
    subject.world_model = copy.deepcopy(subject.world_model)
    next(subject.world_model.decoder.parameters()).data.add_(1.0)
    moved = protocol.differences(reference, subject.numbers(CPU, mixed=False))
    assert moved["reconstructions"]["absolute"] > 0 == moved["hidden states"]["absolute"]
    broken = protocol.differences(reference, {**reference, "values": reference["values"] / 0 * 0})
    assert broken["values"] == {"absolute": None, "relative": None}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "benhc-fp32"], "bench-fp32"),
        (["--only", "official-fp32"], "expected --official"),
        pytest.param(
            ["--device", "cuda"],
            "choose cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_protocol.py", "--device", "cpu", *words])
    with pytest.raises(SystemExit) as exit:
        module("gpu_protocol").main()
    assert exit.value.code == 2
    assert told in capsys.readouterr().err


def test_the_tables_of_the_page_are_what_the_results_make() -> None:
    tables = module("tables")
    found = [json.loads(path.read_text()) for path in sorted(tables.RESULTS.glob("*.json"))]
    assert tables.render(PAGE, found) == PAGE
    assert sorted(name for _, name, _ in tables.MARKED.findall(PAGE)) == sorted(tables.TABLES)
    whole = found[0]["numbers"]["phases"]["whole step"]
    cell = f"| {whole['ratio']['median']:.2f} ({1e3 * whole['stormlit_seconds']['median']:,.0f} ms) |"
    assert cell in PAGE


# ---- Timing beside the released code, without the released code: settings, turns and the table


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("official_timing")


def arguments(timing: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    timing.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), device="cpu", layers=2, heads=8)


def test_our_side_has_the_sizes_asked_for(timing: ModuleType) -> None:
    given = arguments(timing, "--size", "4x32", "--precision", "bf16", "--frames", "500", "--set", "env.game=Pong")
    config = timing._config(given, timing.SIZES["4x32"])
    assert (config.loop.batch_size, config.loop.batch_length, config.imagination.batch_size) == (4, 32, 64)
    assert config.world_model.hidden_dim == config.agent.hidden_dim == 128
    assert (config.precision, config.accelerator, config.env.game) == ("bf16-mixed", "cpu", "Pong")
    assert config.replay.capacity == 500


def test_sides_take_turns_and_the_ratio_is_theirs_to_ours(timing: ModuleType) -> None:
    seen: list[str] = []

    def run(side: str, phase: str, seconds: float) -> None:
        if phase == timing.IMAGINATION:
            seen.append(side)
        time.sleep(seconds)

    rows = (timing.SAMPLE_16X64, *timing.STEP)
    sides = [
        {row: functools.partial(run, side, row, seconds) for row in rows}
        for side, seconds in (("official", 0.02), ("stormlit", 0.001))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stormlit.cli.bench_command.SECONDS_A_ROUND", 0.0)
        seconds = timing._alternate(sides, 2, torch.device("cpu"))
    # Alone and within the whole step: once in the warm-up; in each of two rounds once untimed, and once timed.
    assert seen == ["official", "stormlit"] * 2 + ["official", "official", "stormlit", "stormlit"] * 4
    numbers = timing._numbers(seconds)
    assert list(numbers) == list(timing.ROWS)
    assert all(row["ratio"]["median"] > 2 for row in numbers.values())  # 20, but for what a busy machine adds
    assert numbers[timing.WHOLE]["official_seconds"]["median"] > 6 * 0.02

    table = timing._table(seconds, arguments(timing), timing.SIZES["4x64"], {"device": "cpu", "threads": "1"})
    assert [line.split("|")[1].strip() for line in table.splitlines()[4:]] == list(timing.ROWS)


def test_cuda_autocast_is_taken_for_the_cpus(timing: ModuleType) -> None:
    with timing.CpuAutocast(device_type="cuda", dtype=torch.bfloat16, enabled=True):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with timing.CpuAutocast(device_type="cuda", dtype=torch.bfloat16, enabled=False):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
