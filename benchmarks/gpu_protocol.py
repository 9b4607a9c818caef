"""Everything to measure on a GPU, in one command that can be cut off and called again, without a network.

    python benchmarks/gpu_protocol.py [--only parity bench ...] [--official PATH_TO_A_CLONE] [--seconds 540]

parity     weights, inputs and samples alike on the CPU and on the device: the largest differences
bench      stormlit bench in float32 and bfloat16, eager and, where there is the key ``compile``, compiled
official   the released code's times beside ours, if --official names a clone
processes  1 to 4 trainings of one setting side by side on the device
train      a whole run of --game, in pieces; its folder in --run-dir has to be kept between them

Each result is a small file in benchmarks/results/, written as soon as it is there; what is there already, of the same
commit, device and settings, is not measured again. benchmarks/performance_page.py turns them into docs/performance.md.
Exit codes: 0 all is done, 1 something failed, 2 wrong words, 75 time was up: call again.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from protocol_children import exit_when_terminated, run_python
from protocol_results import FOLDER, STEPS, bench_numbers, file_name, is_current, made_with, result, save, without_paths
from protocol_train import Run, train_piece

from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.envs import env_name
from stormlit.errors import ConfigError, StormlitError
from stormlit.files import read_json
from stormlit.runs.directory import RunDirectory

HERE = Path(__file__).resolve().parent
DONE, FAILED, CALL_AGAIN = 0, 1, 75
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# Sizes at which every step takes seconds on any CPU; what comes out measures nothing.
QUICK = (
    *("world_model.hidden_dim=16", "agent.hidden_dim=16", "world_model.encoder.stem_channels=4"),
    *("imagination.batch_size=8", "loop.batch_size=4", "loop.batch_length=8", "loop.warmup_steps=64"),
    *("loop.env_steps=400", "loop.log_every_env_steps=20", "loop.media_every_env_steps=0", "checkpoint.every=20"),
    *("evaluation.episodes=4", "evaluation.baselines=[]"),
)
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A measurement of its own.  arguments: of Python; ``--json FILE`` is added.  settings: what it depends on."""

    step: str
    what: str | None
    arguments: list[str]
    settings: dict[str, Any]
    numbers: Callable[[Numbers], Numbers] = lambda report: report


class Protocol:
    """What one call was asked to do, until when."""

    def __init__(self, given: argparse.Namespace) -> None:
        _check(given)
        self.given, self.end, self.steps = given, time.monotonic() + given.seconds, given.only or STEPS
        self.device = torch.device(given.device)
        self.config = "tiny" if given.quick else given.config
        game = [f"env.game={given.game}"] if given.game else []
        common = [f"accelerator={self.device.type}", "tracking=csv"]
        self.overrides = [*common, *([] if given.quick else game), *(QUICK if given.quick else ()), *given.set]
        self.composed = compose([self.config], self.overrides)
        self.made_with = made_with(self.device, given.commit)

    def jobs(self) -> list[Job]:
        """All measurements but training, in order."""
        made = {"parity": self._parity, "bench": self._bench, "official": self._official, "processes": self._processes}
        return [job for step in STEPS if step in self.steps and step in made for job in made[step]()]

    def _job(self, step: str, what: str | None, program: list[str], words: list[str], options: list[str]) -> Job:
        settings = {"config": Path(self.config).name, "overrides": without_paths([*self.overrides, *words])}
        settings |= {"options": without_paths(options)}
        return Job(step, what, [*program, self.config, *self.overrides, *words, *options], settings)

    def _parity(self) -> list[Job]:
        sizes = ["--windows", "2", "--length", "8", "--rollouts", "4"] if self.given.quick else []
        options = ["--device", str(self.device), *sizes]
        return [self._job("parity", None, [str(HERE / "protocol_parity.py")], [], options)]

    def _bench(self) -> list[Job]:
        has_compile = "compile" in {field.name for field in dataclasses.fields(Config)}
        modes = {"eager": ["compile=off"], "compiled": ["compile=on"]} if has_compile else {"eager": []}
        jobs = []
        for mode, words in modes.items():
            for name, precision in PRECISIONS.items():
                words_of = [*words, f"precision={precision}"]
                options = ["--rounds", str(self.given.rounds)]
                job = self._job("bench", f"{mode}-{name}", ["-m", "stormlit", "bench"], words_of, options)
                jobs.append(dataclasses.replace(job, numbers=bench_numbers))
        return jobs

    def _official(self) -> list[Job]:
        if self.given.official is None:
            return []
        quick, on_gpu = self.given.quick, self.device.type == "cuda"
        size = "4x32" if quick else ("16x64" if on_gpu else "4x64")
        frames = "500" if quick else "100000"
        jobs = []
        for name in PRECISIONS:
            options = ["--time", "--size", size, "--precision", name, "--device", str(self.device)]
            options += ["--frames", frames, "--rounds", str(self.given.rounds)]
            words = ["--set", *self.given.set] if self.given.set else []
            arguments = [str(HERE / "against_official.py"), "--official", str(self.given.official), *options, *words]
            settings = {"size": size, "precision": name, "frames": int(frames), "rounds": self.given.rounds}
            settings |= {"config": "storm", "overrides": without_paths(self.given.set)}
            jobs.append(Job("official", f"{size}-{name}", arguments, settings, lambda report: report["numbers"]))
        return jobs

    def _processes(self) -> list[Job]:
        jobs = []
        for count in self.given.processes:
            options = ["--count", str(count), "--seconds", f"{self.given.process_seconds:g}"]
            jobs.append(self._job("processes", str(count), [str(HERE / "protocol_processes.py")], [], options))
        return jobs

    def measure(self, job: Job) -> int:
        """Do a job unless it is done; returns an exit code."""
        name = file_name(self.made_with["device"], job.step, job.what, self.given.quick)
        if not self.given.again and is_current(self.given.results / name, self.made_with, job.settings):
            return self._say(name, "is there already", DONE)
        if self.seconds_left <= 0:
            return self._say(name, "no time left", CALL_AGAIN)
        self._say(name, f"{self.seconds_left:.0f} seconds left", DONE)
        with tempfile.TemporaryDirectory(prefix="stormlit-protocol-") as folder:
            file = Path(folder) / "numbers.json"
            code = run_python([*job.arguments, "--json", str(file)], limit=self.seconds_left)
            if code is None:
                return self._say(name, "time was up before it was measured", CALL_AGAIN)
            if code != 0 or not file.is_file():
                return self._say(name, f"failed with exit code {code}", FAILED)
            self._save(job.step, job.what, job.settings, job.numbers(read_json(file)))
        return self._say(name, "written", DONE)

    def train(self) -> int:
        """The next piece of the training run; returns an exit code."""
        config = self.composed
        words = [self.config.replace("/", "-"), env_name(config.env).replace("/", "-"), f"s{config.seed}"]
        what = "-".join(words).lower() if self.given.name is None else self.given.name
        directory = RunDirectory(self.given.run_dir / f"protocol-{what}")
        run = Run(directory, self.config, self.overrides, config.loop.env_steps)
        if run.evaluation() is None and self.seconds_left <= 0:
            return self._say(f"train {what}", "no time left", CALL_AGAIN)
        settings = {"config": Path(self.config).name, "overrides": without_paths(self.overrides), "seed": config.seed}

        def publish(numbers: Numbers) -> None:
            self._save("train", what, settings, numbers)

        before = run.env_steps_saved()
        code = train_piece(run, self.made_with, settings, self.seconds_left, publish)
        saved = run.env_steps_saved()
        if run.evaluation() is not None:
            return self._say(f"train {what}", "is at its end", DONE)
        if code is not None:
            return self._say(f"train {what}", f"failed with exit code {code}; saved at step {saved}", FAILED)
        if saved == before:
            return self._say(f"train {what}", f"nothing was saved beyond step {saved}: give more --seconds", FAILED)
        return self._say(f"train {what}", f"saved at step {saved} of {config.loop.env_steps}", CALL_AGAIN)

    def _save(self, step: str, what: str | None, settings: dict[str, Any], numbers: Numbers) -> None:
        named = {"quick": self.given.quick, "made_with": self.made_with, "command": self.command(step)}
        save(self.given.results, result(step, what, settings=settings, numbers=numbers, **named))

    def command(self, step: str) -> str:
        """That does a step again, without paths."""
        given = self.given
        words = ["--device", given.device, "--only", step, *(["--quick"] if given.quick else [])]
        if given.config != "storm":
            words += ["--config", given.config]
        if given.game != "Pong":
            words += ["--game", given.game]
        words += ["--official", "PATH_TO_A_CLONE"] if step == "official" else []
        words += ["--set", *given.set] if given.set else []
        return shlex.join(["python", "benchmarks/gpu_protocol.py", *without_paths(words)])

    @property
    def seconds_left(self) -> float:
        return self.end - time.monotonic()

    def _say(self, name: str, text: str, code: int) -> int:
        print(f"gpu_protocol: {name}: {text}", file=sys.stderr, flush=True)
        return code


def _check(given: argparse.Namespace) -> None:
    if given.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no CUDA device; choose cpu")
    if given.official is None and "official" in (given.only or ()):
        raise ConfigError("--only official: expected --official with the path of a clone")
    if given.official is not None and not (given.official / "train.py").is_file():
        raise ConfigError(f"--official {given.official}: expected a checkout of github.com/weipu-zhang/STORM")
    if min(given.processes) < 1:
        raise ConfigError(f"--processes {min(given.processes)}: expected at least 1")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help="default: all")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too (never: train)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the protocol out, measures nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=540.0, help="time limit of the whole call (default 540)")
    parser.add_argument("--config", default="storm", help="configuration (default storm)")
    parser.add_argument("--game", default="Pong", help="env.game; '' for the configuration's (default Pong)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further settings")
    parser.add_argument("--rounds", type=int, default=5, help="of bench and official (default 5)")
    parser.add_argument("--official", type=Path, help="a checkout of github.com/weipu-zhang/STORM")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3, 4], metavar="N")
    parser.add_argument("--process-seconds", type=float, default=20.0, help="measured side by side (default 20)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the JSON files")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder of the training run (default runs)")
    parser.add_argument("--name", help="of the training run; default: from configuration, game and seed")
    parser.add_argument("--commit", help="of the source, where it is outside a git checkout")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    given = _arguments(words)
    exit_when_terminated()
    try:
        protocol = Protocol(given)
        given.results.mkdir(parents=True, exist_ok=True)
        codes = [protocol.measure(job) for job in protocol.jobs()]
        if "train" in protocol.steps:
            codes.append(protocol.train())
    except StormlitError as error:
        print(f"gpu_protocol: error: {error}", file=sys.stderr)
        return error.exit_code
    return next((code for code in (FAILED, CALL_AGAIN) if code in codes), DONE)


if __name__ == "__main__":
    sys.exit(main())
