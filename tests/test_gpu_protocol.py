"""``benchmarks/gpu_protocol.py``: what it writes, leaves out, stops and goes on with, and where it runs."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from borrowed import borrowed_python
from stormlit.config.compose import compose
from stormlit.errors import ConfigError
from stormlit.files import write_json
from stormlit.runs.directory import RunDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
PROTOCOL = REPOSITORY / "benchmarks" / "gpu_protocol.py"
MADE = {
    "git_commit": "c" * 40,
    "git_dirty": "false",
    "device": "cuda (NVIDIA H100 80GB)",
    "version.torch": "2",
    "threads": 1,
}
QUICK = ("--device", "cpu", "--quick", "--rounds", "1")


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setattr(module("gpu_protocol"), "exit_when_terminated", lambda: None)


def made_up(step: str = "processes", what: str | None = "2", **changes: Any) -> dict[str, Any]:
    named = {"quick": False, "made_with": MADE, "command": "python x.py", "settings": {"a": 1}, "numbers": {"b": 2}}
    return module("protocol_results").result(step, what, **{**named, **changes})


def test_a_result_is_kept_under_its_name(tmp_path: Path) -> None:
    results = module("protocol_results")
    assert results.save(tmp_path, made_up()) == tmp_path / "nvidia-h100-80gb-processes-2.json"
    assert results.read_all(tmp_path) == [made_up()]
    results.save(tmp_path, made_up(quick=True, made_with={**MADE, "device": "cpu (x86_64)"}))
    assert (tmp_path / "cpu-quick-processes-2.json").is_file()
    assert results.read_all(tmp_path) == [made_up()]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (json.dumps({**dict.fromkeys(("step", "numbers")), "schema": 99}), ["schema 99", "expected 1"]),
        ("{}", ["schema none"]),
        ('{"schema": 1, "step": "benhc"}', ["benhc", "did you mean 'bench'"]),
        ('{"schema": 1, "step": "train"}', ["'command'", "missing"]),
        ('{"schema": 1', ["not readable JSON"]),
    ],
)
def test_what_is_no_result_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, told: list[str]
) -> None:
    (tmp_path / "x.json").write_text(content)
    page = tmp_path / "page.md"
    page.write_text("untouched")
    assert module("performance_page").main(["--results", str(tmp_path), "--page", str(page)]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert all(word in sentence for word in (*told, "x.json")), sentence
    assert page.read_text() == "untouched"


def test_a_result_holds_for_the_same_code_device_and_settings(tmp_path: Path) -> None:
    results = module("protocol_results")
    file = results.save(tmp_path, made_up())
    assert results.is_current(file, MADE, {"a": 1})
    assert not results.is_current(file, MADE, {"a": 2})
    for key in ("git_commit", "git_dirty", "device", "version.torch"):
        assert not results.is_current(file, {**MADE, key: "other"}, {"a": 1})
    assert not results.is_current(tmp_path / "none.json", MADE, {"a": 1})


def test_no_paths_are_published() -> None:
    words = ["/home/me/my.yaml", "my/own.yaml", "demonstrations.path=~/d.npz", "env.id=ALE/Pong-v5", "storm", "a=[1.5]"]
    shown = ["my.yaml", "own.yaml", "demonstrations.path=d.npz", "env.id=ALE/Pong-v5", "storm", "a=[1.5]"]
    assert module("protocol_results").without_paths(words) == shown


def test_the_commit_is_told_where_git_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    results = module("protocol_results")
    monkeypatch.setattr(results, "run_tags", lambda device: {"git_commit": "unknown", "git_dirty": "unknown"})
    assert results.made_with(torch.device("cpu"), "abc")["git_commit"] == "abc"
    assert results.made_with(torch.device("cpu"))["git_commit"] == "unknown"


class Child:
    """Stands for ``run_python``: notes what it is given and does what it is told."""

    def __init__(self, *codes: int | None) -> None:
        self.codes, self.seen = list(codes), []

    def __call__(self, arguments: Sequence[str], *, limit: float, **options: Any) -> int | None:
        self.seen.append(list(arguments))
        code = self.codes.pop(0) if self.codes else 0
        if code == 0 and "--json" in arguments:
            Path(arguments[-1]).write_text('{"total": 3}')
        return code


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Child]]:
    """Calls the protocol for two processes steps on children that end with the given codes."""

    def called(*words: str, codes: Sequence[int | None] = ()) -> tuple[int, Child]:
        child = Child(*codes)
        monkeypatch.setattr(module("gpu_protocol"), "run_python", child)
        options = ["--only", "processes", "--processes", "1", "2", "--results", str(tmp_path / "results")]
        return module("gpu_protocol").main([*QUICK, *options, *words]), child

    return called


def test_what_is_there_is_left_out(call: Callable[..., tuple[int, Child]], tmp_path: Path) -> None:
    code, child = call()
    assert (code, len(child.seen)) == (0, 2)
    [first, second] = sorted((tmp_path / "results").iterdir())
    assert [first.name, second.name] == ["cpu-quick-processes-1.json", "cpu-quick-processes-2.json"]
    assert module("protocol_results").read(first)["numbers"] == {"total": 3}
    assert str(tmp_path) not in first.read_text()
    for words, children in (((), 0), (("--again",), 2), (("--set", "seed=3"), 2), (("--set", "seed=3"), 0)):
        code, child = call(*words)
        assert (code, len(child.seen)) == (0, children), words


def test_a_failure_does_not_keep_the_others_from_being_measured(
    call: Callable[..., tuple[int, Child]], tmp_path: Path
) -> None:
    assert call(codes=[3])[0] == 1
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["cpu-quick-processes-2.json"]
    code, child = call()
    assert (code, len(child.seen)) == (0, 1)


def test_time_that_is_up_asks_for_another_call(call: Callable[..., tuple[int, Child]], tmp_path: Path) -> None:
    assert call(codes=[None])[0] == 75
    code, child = call("--seconds", "0", "--again")
    assert (code, child.seen) == (75, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--only", "official"], ["--official"]),
        (["--official", "nowhere"], ["nowhere", "weipu-zhang/STORM"]),
        (["--processes", "0"], ["--processes 0", "at least 1"]),
        (["--set", "seeed=1"], ["seeed"]),
        pytest.param(
            ["--device", "cuda"],
            ["--device cuda", "choose cpu"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_words_are_refused(
    call: Callable[..., tuple[int, Child]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: list[str],
) -> None:
    code, child = call(*words)
    [sentence] = capsys.readouterr().err.splitlines()
    assert (code, child.seen) == (2, [])
    assert all(word in sentence for word in told), sentence
    assert not list(tmp_path.iterdir())


def test_compiled_is_measured_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = module("gpu_protocol")
    given = protocol._arguments([*QUICK, "--only", "bench"])
    for has, modes in ((False, {"eager"}), (True, {"eager", "compiled"})):
        fields = [type("Field", (), {"name": name}) for name in ("seed", *(["compile"] if has else []))]
        monkeypatch.setattr(protocol.dataclasses, "fields", lambda _, found=fields: found)
        jobs = protocol.Protocol.__new__(protocol.Protocol)
        jobs.given, jobs.config, jobs.overrides = given, "tiny", []
        found = {job.what: job.arguments for job in jobs._bench()}
        assert found.keys() == {f"{mode}-{precision}" for mode in modes for precision in ("fp32", "bf16")}
        assert [word for word in found["eager-bf16"] if word.startswith("compile=")] == ["compile=off"] * has


def test_a_child_is_asked_to_stop_before_it_is_made_to(tmp_path: Path) -> None:
    run_python = module("protocol_children").run_python
    assert run_python(["-c", "raise SystemExit(7)"], limit=60) == 7

    saved, ready = tmp_path / "saved", tmp_path / "ready"
    handler = f"lambda *_: (open({str(saved)!r}, 'w').close(), exit(0))"
    sleep = f"open({str(ready)!r}, 'w').close(); time.sleep(60)"
    child = f"import signal, time; signal.signal(15, {handler}); {sleep}"
    beats: list[int] = []
    assert run_python(["-c", child], limit=1, beat=lambda: beats.append(1), every=0.25, grace=30) is None
    assert saved.exists() or not ready.exists()  # a loaded machine may not even have started it
    assert len(beats) >= 3

    stubborn = f"import signal, time; signal.signal(15, signal.SIG_IGN); {sleep}"
    start = time.monotonic()
    assert run_python(["-c", stubborn], limit=0.3, grace=0.3) is None
    assert time.monotonic() - start < 30


def test_a_run_is_trained_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = module("protocol_train")
    run = training.Run(RunDirectory(tmp_path / "protocol-x"), "tiny", ["seed=1"], 100)
    published: list[dict[str, Any]] = []

    def child_saves(env_steps: int, code: int | None) -> list[str]:
        seen: list[str] = []

        def child(arguments: list[str], **_: Any) -> int | None:
            seen.extend(arguments)
            folder = run.directory.checkpoints / f"step-{env_steps:09d}"
            write_json(folder / "manifest.json", {"env_steps": env_steps})
            (run.directory.path / "metrics.csv").write_text("step,key,value\n40,episode/return,2.5\n40,x,1\n")
            if env_steps >= run.env_steps:
                episodes = [{"episode_return": 1.0}] * 4
                played = {"game": "Catch", "mean": 1.0, "std": 3.0, "human_normalized": None, "episodes": episodes}
                write_json(run.directory.evaluation / f"step-{env_steps:09d}.json", played)
            return code

        monkeypatch.setattr(training, "run_python", child)
        training.train_piece(run, MADE, {"seed": 1}, 10.0, published.append)
        return seen

    assert child_saves(40, None)[:4] == ["-m", "stormlit", "train", "tiny"]
    assert (published[-1]["env_steps"], published[-1]["latest_return"], published[-1]["evaluation"]) == (40, 2.5, None)
    assert child_saves(102, 0)[:4] == ["-m", "stormlit", "resume", "protocol-x"]
    last = published[-1]
    assert [(piece["from_env_steps"], piece["to_env_steps"]) for piece in last["pieces"]] == [(0, 40), (40, 102)]
    assert [piece["exit_code"] for piece in last["pieces"]] == [None, 0]
    assert last["seconds"] == sum(piece["seconds"] for piece in last["pieces"]) > 0
    assert last["evaluation"] == {
        **{"game": "Catch", "mean": 1.0, "human_normalized": None},
        **{"standard_error": 1.5, "episodes": 4},
    }
    assert child_saves(102, 0) == []
    assert published[-1] == last
    with pytest.raises(ConfigError, match="other settings"):
        training.train_piece(run, MADE, {"seed": 2}, 10.0, published.append)


def test_parity_is_exact_with_itself_and_finds_what_rounds() -> None:
    parity, protocol = module("protocol_parity"), module("gpu_protocol")
    heads = ("world_model.reward_head", "world_model.continuation_head", "agent.actor", "agent.critic")
    random_heads = [f"{head}.zero_output=false" for head in heads]
    config = compose(["tiny"], [*protocol.QUICK, *random_heads, parity.NO_DROPOUT])
    subject, cpu = parity.Subject(config, 2, 8, 4), torch.device("cpu")
    reference = parity.quantities(subject, cpu, mixed=False)
    again = parity.differences(reference, parity.quantities(subject, cpu, mixed=False))
    rounded = parity.differences(reference, parity.quantities(subject, cpu, mixed=True))
    assert again.keys() >= {"posterior", "imagined hidden states", "world model gradients", "agent loss: value"}
    assert all(found["absolute"] == 0 for found in again.values())
    touched = {name for name, found in rounded.items() if found["absolute"] > 0}
    assert touched >= again.keys() - {"return scale"}
    assert all(found["relative"] < 0.1 for found in rounded.values())
    next(subject.world_model.decoder.parameters()).data.add_(1.0)
    moved = parity.differences(reference, parity.quantities(subject, cpu, mixed=False))
    assert moved["reconstructions"]["absolute"] > 0 == moved["hidden states"]["absolute"]


@pytest.fixture(scope="module")
def borrowed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with what docs/performance.md says that has to be carried along."""
    [line] = re.findall(r"^pip download .*$", (REPOSITORY / "docs" / "performance.md").read_text(), re.MULTILINE)
    carried = re.findall(r'"([a-z-]+)[^"]*"', line)
    python = borrowed_python(tmp_path_factory.mktemp("borrowed") / "venv", carried)
    for there, name in ((True, "torch"), (False, "mlflow"), (False, "pandas"), (False, "imageio_ffmpeg")):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{name}') is None)"
        assert (subprocess.run([str(python), "-c", code]).returncode == 0) == there, name
    return str(python)


def protocol(python: str, folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """The protocol in a process of its own, with nothing of this one's environment but the threads."""
    environment = {"PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    places = ["--results", str(folder / "results"), "--run-dir", str(folder / "runs")]
    return subprocess.Popen([python, str(PROTOCOL), *QUICK, *places, *words], env=environment, cwd=folder)


@pytest.mark.slow
def test_everything_is_measured_where_little_is_installed(borrowed: str, tmp_path: Path) -> None:
    sizes = ["--processes", "2", "--process-seconds", "0.5", "--commit", "abc"]
    assert protocol(borrowed, tmp_path, "--only", "parity", "bench", "processes", *sizes).wait(500) == 0
    found = {file.name: module("protocol_results").read(file) for file in (tmp_path / "results").iterdir()}
    assert found.keys() >= {
        *("cpu-quick-parity.json", "cpu-quick-bench-eager-fp32.json", "cpu-quick-bench-eager-bf16.json"),
        "cpu-quick-processes-2.json",
    }
    side_by_side = found["cpu-quick-processes-2.json"]["numbers"]
    assert len(side_by_side["env_steps_per_second"]) == 2
    assert side_by_side["total_env_steps_per_second"] == sum(side_by_side["env_steps_per_second"]) > 0
    # What quick results would make of the page, if they counted.
    tables, shown = module("performance_tables"), list(found.values())
    assert all(
        len(row) == len(columns) for make in tables.TABLES.values() for columns, rows in [make(shown)] for row in rows
    )
    for file in (tmp_path / "results").iterdir():
        assert not re.search(re.escape(str(tmp_path)) + "|/home|/root|/tmp", file.read_text())


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_cut_off(borrowed: str, tmp_path: Path) -> None:
    name = "tiny-catch-s0"
    file, checkpoints = tmp_path / "results" / f"cpu-quick-train-{name}.json", tmp_path / "runs" / f"protocol-{name}"
    first = protocol(borrowed, tmp_path, "--only", "train")
    deadline = time.monotonic() + 300
    while not list(checkpoints.glob("checkpoints/step-*/manifest.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(120) == 128 + signal.SIGTERM
    begun = json.loads(file.read_text())["numbers"]
    assert 0 < begun["env_steps"] < begun["budget"] == 400
    assert begun["evaluation"] is None

    assert protocol(borrowed, tmp_path, "--only", "train").wait(500) == 0
    ended = json.loads(file.read_text())["numbers"]
    assert ended["env_steps"] == 400
    assert ended["evaluation"]["episodes"] == 4
    assert [piece["to_env_steps"] for piece in ended["pieces"]] == [begun["env_steps"], 400]
    assert ended["seconds"] > begun["seconds"] > 0


@pytest.mark.slow
def test_a_process_that_dies_ends_the_measurement() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "protocol_processes.py"), "tiny", "loop.batch_size=0"]
    ended = subprocess.run([*command, "--count", "2", "--seconds", "1"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1
    assert "before it had measured" in ended.stderr.splitlines()[-1]
