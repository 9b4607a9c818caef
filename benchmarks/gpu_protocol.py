"""What there is to measure on a GPU, step by step; each step is a process with a time limit, a log and a JSON file.

    python benchmarks/gpu_protocol.py [--only STEP ...] [--official PATH_TO_A_CLONE] [--out FOLDER] [--run-dir runs]

parity      same weights, inputs and samples on the CPU and on the device: the largest differences
bench-*     stormlit bench, on a GPU uncompiled and compiled in turn: seconds, launches and memory of each phase
official-*  the released code's times beside ours, if --official names a clone
train       a whole training of env.game=Pong; what is stopped goes on in the next call, from its folder in --run-dir

A step whose JSON file is in --out already is left out. ``--device cpu --sizes small`` tries all of it out on any CPU.
Exit codes: 0 all is done, 1 a step failed, 2 wrong words, 75 a step ran out of time: call again, with more --seconds.
"""

from __future__ import annotations

import argparse
import copy
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stormlit.cli.bench_command import header
from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.data import Batch, Trajectory
from stormlit.envs import VectorEnv
from stormlit.errors import StormlitError
from stormlit.files import read_json, write_json
from stormlit.ops.categorical import straight_through
from stormlit.runs.assembly import build_modules
from stormlit.runs.checkpoint import list_checkpoints
from stormlit.runs.device import make_fabric
from stormlit.runs.directory import RunDirectory

DONE, FAILED, CALL_AGAIN = 0, 1, 75
PROGRAM = ("python", "benchmarks/gpu_protocol.py")
GRACE = 60.0  # seconds to save a checkpoint in
LIMITS = {"parity": 120, "bench-fp32": 300, "bench-bf16": 300, "official-fp32": 240, "official-bf16": 240, "train": 480}
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# Every step runs on any CPU with these sizes; what comes out measures nothing.
SMALL = """tiny env.num_envs=1 loop.world_model_updates_per_env_step=1 loop.agent_updates_per_env_step=1
    world_model.hidden_dim=16 agent.hidden_dim=16 world_model.encoder.stem_channels=4 loop.batch_size=4
    imagination.batch_size=8 imagination.horizon=3 loop.batch_length=8 loop.warmup_steps=64 loop.env_steps=400
    loop.log_every_env_steps=20 loop.media_every_env_steps=0 checkpoint.every=20 evaluation.episodes=4
    evaluation.baselines=[]"""
SIZES = {"paper": ["storm", "env.game=Pong"], "small": SMALL.split()}
HEADS = ("world_model.reward_head", "world_model.continuation_head", "agent.actor", "agent.critic")
PARITY = ["world_model.sequence_model.dropout=0.0", *(f"{head}.zero_output=false" for head in HEADS)]
Result = dict[str, Any]


def command(step: str, given: argparse.Namespace) -> list[str]:
    """Python's arguments for a step."""
    small, file = given.sizes == "small", f"--json={given.out / step}.json"
    kind, _, precision = step.partition("-")
    if kind == "parity":
        return [__file__, *again(step, given), "--here", file]
    if kind == "bench":
        options = [file, f"--rounds={1 if small else 5}"]
        options += ["--compare", "compile=false", "compile=true"] if given.device == "cuda" else []
        return ["-m", "stormlit", "bench", *given.words, f"precision={PRECISIONS[precision]}", *options]
    if kind == "official":
        script = [str(Path(__file__).with_name("against_official.py")), f"--official={given.official}", "--time"]
        sizes = "--size=4x32 --frames=500 --rounds=1" if small else "--size=16x64 --frames=100000 --rounds=5"
        return [*script, *sizes.split(), f"--precision={precision}", f"--device={given.device}", file]
    run = [f"run.dir={given.run.root}", f"run.name={given.run.name}"]
    return ["-m", "stormlit", "train", *given.words, "resume=auto", *run]


def again(step: str, given: argparse.Namespace) -> list[str]:
    """The words that do a step once more, without paths."""
    return ["--only", step, "--device", given.device, "--sizes", given.sizes, *(f"--set={word}" for word in given.set)]


def published(step: str, given: argparse.Namespace, numbers: Result, **settings: Any) -> Result:
    """What a JSON file of ours holds."""
    start = header(step, shlex.join([*PROGRAM, *again(step, given)]), torch.device(given.device))
    return {**start, "settings": {"words": given.words, **settings}, "numbers": numbers}


def run_python(words: Sequence[str], log: Path, seconds: float) -> int | None:
    """Run Python; returns its exit code, None where its time was up: SIGTERM, and SIGKILL if that is in vain."""
    with log.open("ab") as file:
        child = subprocess.Popen([sys.executable, *words], stdout=file, stderr=file, start_new_session=True)
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and what it has started
            child.wait()


def train(given: argparse.Namespace, seconds: float) -> int | None:
    """The next piece of a training; returns its exit code, None where it was stopped."""
    run, file, log = given.run, given.out / "train.json", given.out / "train.log"
    pieces = read_json(file)["numbers"]["pieces"] if file.is_file() else []
    begun, code = time.monotonic(), None
    try:
        code = run_python(command("train", given), log, seconds)
    finally:
        saved = [read_json(checkpoint / "manifest.json")["env_steps"] for checkpoint in list_checkpoints(run)]
        pieces.append({"env_steps": max(saved, default=0), "seconds": time.monotonic() - begun, "exit_code": code})
        played = [read_json(run.evaluation / f"step-{step:09d}.json") for step in [run.finished_at()] if step]
        numbers = {"pieces": pieces, "seconds": sum(piece["seconds"] for piece in pieces), "evaluation": played}
        told = [line for line in log.read_text().splitlines() if "could not be compiled" in line]
        write_json(file, {**published("train", given, numbers), "not_compiled": told, "cuda_graphs_skipped": None})
    return code


def do(step: str, given: argparse.Namespace) -> int:
    """Do a step unless it is done; returns an exit code."""
    file, log, seconds = given.out / f"{step}.json", given.out / f"{step}.log", given.seconds or LIMITS[step]
    if file.is_file() and (step != "train" or given.run.finished_at() is not None):
        return say(step, "is there already", DONE)
    say(step, f"at most {seconds:.0f} seconds", DONE)
    code = train(given, seconds) if step == "train" else run_python(command(step, given), log, seconds)
    if code is None:
        return say(step, "ran out of time", CALL_AGAIN)
    return say(step, f"ended with exit code {code}, see {log}", FAILED if code else DONE)


def say(step: str, text: str, code: int) -> int:
    print(f"gpu_protocol: {step}: {text}", file=sys.stderr, flush=True)
    return code


class Parity:
    """Both modules with random weights, and inputs for them, on the CPU. Nothing is drawn, dropout is off."""

    def __init__(self, config: Config, windows: int, length: int) -> None:
        torch.manual_seed(config.seed)
        with closing(VectorEnv(config.env, seed=config.seed)) as envs:
            (rows, columns, channels), actions = envs.obs_shape, envs.num_actions
            self.world_model, self.agent = build_modules(config, envs.obs_shape, actions)
        self.start, horizon = config.imagination.context_length, config.imagination.horizon
        self.end, latent = self.start + horizon, self.world_model.latent
        frames = torch.randint(256, (windows, length, channels, rows, columns), dtype=torch.uint8)
        ends, rewards = torch.rand(windows, length) < 0.02, 3 * torch.randn(windows, length)
        action = torch.randint(actions, (windows, length))
        self.batch = Batch(frames, action, rewards, ends, is_first=ends.roll(1, dims=1))
        drawn = torch.randint(latent.classes, (windows, length, latent.groups))
        self.latent = nn.functional.one_hot(drawn, latent.classes).float()
        random = torch.randn(windows, horizon), *torch.rand(2, windows, horizon).unbind()
        hidden, states = torch.randn(windows, horizon + 1, self.world_model.hidden_dim), self.latent.flatten(-2)
        self.trajectory = Trajectory(states[:, : horizon + 1], hidden, action[:, :horizon], *random)

    def numbers(self, device: torch.device, *, mixed: bool) -> Result:
        """Everything that is compared, in float32 on the CPU.  mixed: under bfloat16's autocast."""
        model, agent = (copy.deepcopy(module).to(device) for module in (self.world_model, self.agent))
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=mixed)
        batch, forced = self.batch.to(device), self.latent.to(device)
        latent, action, sequence = forced.flatten(-2), batch.action, model.eval().sequence_model
        with autocast, torch.no_grad():
            hidden = sequence(latent, action, batch.is_first)
            found = {"hidden states": hidden, "posterior": model.posterior(batch.obs)}
            found |= {"prior": model.latent.prior(hidden), "reconstructions": model.decode(latent).image}
            found |= {"rewards": model.reward(hidden), "continuation": model.continuation(hidden)}
            found |= {"policy": agent.eval().policy(latent, hidden), "values": agent.value(latent, hidden)}
            context, none_first = slice(self.start), torch.zeros_like(batch.is_first[:, : self.start])
            _, memory = sequence.prefill(latent[:, context], action[:, context], none_first, self.end)
            steps = [sequence.step(latent[:, t], action[:, t], memory) for t in range(self.start, self.end)]
            found["imagined hidden states"] = torch.stack(steps, dim=1)
        model.latent.sample = lambda log_probs: straight_through(forced, log_probs.exp()).flatten(-2)
        trajectory = Trajectory(*(getattr(self.trajectory, name).to(device) for name in Trajectory.__slots__))
        for name, module, data in (("world model", model.train(), batch), ("agent", agent.train(), trajectory)):
            with autocast:
                losses = module.losses(data)
            losses.total.backward()
            found |= {f"{name} loss: {term}": value for term, value in losses.terms.items()}
            gradients = [p.grad.flatten().float() for p in module.parameters() if p.grad is not None]
            found[f"{name} gradients"] = torch.cat(gradients)
        found["return scale"] = losses.metrics["return_scale"]
        return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def differences(reference: Result, other: Result) -> dict[str, dict[str, float | None]]:
    """Of each quantity the largest difference, absolute and relative to its largest number; None for NaN."""
    found = {}
    for name, expected in reference.items():
        absolute = (expected - other[name]).abs().max()
        both = {"absolute": absolute, "relative": absolute / expected.abs().max().clamp(min=1e-12)}
        found[name] = {kind: float(value) if value.isfinite() else None for kind, value in both.items()}
    return found


def parity(given: argparse.Namespace) -> Result:
    """Differences from the CPU in float32, for each way to compute."""
    config = compose(given.words[:1], [*given.words[1:], *PARITY])
    device, cpu = make_fabric(config).device, torch.device("cpu")
    windows, length = (2, 8) if given.sizes == "small" else (16, 64)
    subject, ways = Parity(config, windows, length), {"fp32": (device, False), "bf16": (device, True)}
    if device.type == "cuda":
        ways |= {"tf32": (device, False), "bf16 on the CPU": (cpu, True)}
    reference, found = subject.numbers(cpu, mixed=False), {}
    for way, (where, mixed) in ways.items():
        torch.set_float32_matmul_precision("highest" if way == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = way != "fp32"
        found[way] = differences(reference, subject.numbers(where, mixed=mixed))
    return published("parity", given, found, windows=windows, length=length, compile=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LIMITS, metavar="STEP", help="default: all")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--sizes", choices=SIZES, default="paper", help="small ones only try it out")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings")
    parser.add_argument("--official", type=Path, help="a checkout of github.com/weipu-zhang/STORM")
    parser.add_argument("--seconds", type=float, help="time limit of each step, in place of its own")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of JSON files and logs")
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder of the training (default runs)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.only or [step for step in LIMITS if given.official or not step.startswith("official")]
    if given.official is None and any(step.startswith("official") for step in steps):
        parser.error("official-*: expected --official with the path of a clone")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device; choose cpu")
    given.run = RunDirectory(given.run_dir.resolve() / f"protocol-{given.sizes}")
    given.words = [*SIZES[given.sizes], f"accelerator={given.device}", "tracking=csv", *given.set]
    try:
        compose(given.words[:1], given.words[1:])
    except StormlitError as error:
        parser.error(str(error))
    if given.here:
        return write_json(given.json, parity(given)) or DONE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children are stopped first
    given.out.mkdir(parents=True, exist_ok=True)
    codes = [do(step, given) for step in steps]
    return next((code for code in (FAILED, CALL_AGAIN) if code in codes), DONE)


if __name__ == "__main__":
    sys.exit(main())
