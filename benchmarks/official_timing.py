"""Timing stormlit beside a clone of the released code: ``against_official.py --time``.

Same sizes, environment, frames and weights at the beginning; one process, the same threads; every phase in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import shlex
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from official_play import their_modules
from torch import Tensor
from torch.utils.benchmark import Measurement
from tqdm import tqdm

from stormlit.cli import phases as names
from stormlit.cli.bench_command import WARM_UP_RUNS, header, ratio, spread, timed
from stormlit.cli.phases import ACTING, AGENT, IMAGINATION, WHOLE, WORLD_MODEL, Phases, prepared
from stormlit.config.compose import compose
from stormlit.config.schema import Config
from stormlit.files import write_json
from stormlit.nn.compilation import should_compile
from stormlit.runs.device import M_MMAP_MAX, M_TRIM_THRESHOLD, keep_freed_memory
from stormlit.runs.official import agent_state, world_model_state

SAMPLE_16X64 = "sample 16x64"
STEP = (ACTING, names.SAMPLE_BATCH, WORLD_MODEL, names.SAMPLE_CONTEXTS, IMAGINATION, AGENT)
ROWS = (SAMPLE_16X64, *STEP, WHOLE)
CONTEXT, HORIZON, ACTING_CONTEXT = 8, 16, 16
# Ours for each choice. The released code follows with "bf16" alone, which it cannot run on a CPU as it is.
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp32-bf16": "bf16-mixed"}
PROGRAM = ("python", "benchmarks/against_official.py", "--official=PATH_TO_A_CLONE", "--time")
OPTIONS = ("device", "size", "layers", "heads", "precision", "rounds", "frames", "config")
M_MMAP_THRESHOLD, MIB = -3, 2**20  # the first is of glibc's mallopt, see malloc.h
Run = Callable[[], object]
Rounds = list[Measurement]


class Size(NamedTuple):
    """batch, length: of the world model's windows.  rows: imagined.  width: of sequence model, actor and critic."""

    batch: int
    length: int
    rows: int
    width: int


SIZES = {"16x64": Size(16, 64, 1024, 512), "4x64": Size(4, 64, 128, 512), "4x32": Size(4, 32, 64, 128)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the timing."""
    group = parser.add_argument_group("timing")
    group.add_argument("--time", action="store_true", help="time the phases instead of comparing the numbers")
    sizes = ", ".join(f"{name} with {s.rows}x({CONTEXT}+{HORIZON}), width {s.width}" for name, s in SIZES.items())
    group.add_argument("--size", choices=SIZES, default="4x64", help=f"{sizes}; default 4x64")
    group.add_argument("--precision", choices=PRECISIONS, default="fp32")
    group.add_argument("--rounds", type=int, default=5, help="how often each phase is timed (default 5)")
    group.add_argument("--frames", type=int, default=100_000, help="in both replay buffers (default 100,000)")
    group.add_argument("--config", default="storm", help="ours: a configuration (default storm)")
    group.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="of ours")
    group.add_argument("--json", type=Path, help="where to write the numbers")


def compare_times(official: Any, arguments: argparse.Namespace) -> None:
    """Measure, print the table and write the JSON file.  official: the clone's modules."""
    size, device = SIZES[arguments.size], torch.device(arguments.device)
    with prepared(_config(arguments, size)) as phases:
        theirs = Official(official, phases, arguments, size)
        _fill(phases, theirs, arguments.frames)
        seconds = _alternate([theirs.runs(), _our_runs(phases)], arguments.rounds, device)
        compiled = should_compile(phases.config.compile, phases.training.fabric)
    given = {**{name: getattr(arguments, name) for name in OPTIONS}, "config": Path(arguments.config).name}
    words = [f"--{name}={value}" for name, value in given.items()] + [f"--set={word}" for word in arguments.set]
    found = header("official", shlex.join([*PROGRAM, *words]), device)
    print(_table(seconds, arguments, size, found["made_with"]))
    if arguments.json:
        settings = {**size._asdict(), **given, "overrides": arguments.set, "compiled": compiled}
        write_json(arguments.json, {**found, "settings": settings, "numbers": {"phases": _numbers(seconds)}})


def _fill(phases: Phases, theirs: Official, frames: int) -> None:
    """The same random frames into both buffers."""
    pool = np.random.default_rng(0).integers(256, size=(256, 1, *phases.training.envs.obs_shape), dtype=np.uint8)
    nothing = np.zeros(1, dtype=bool)
    for index in tqdm(range(frames), desc="fill both buffers", file=sys.stderr, leave=False):
        action, reward = np.array([index % phases.training.envs.num_actions]), np.zeros(1, dtype=np.float32)
        phases.training.replay.append(pool[index % len(pool)], action, reward, nothing, nothing)
        theirs.replay.append(pool[index % len(pool)], action, reward, nothing)


def _config(arguments: argparse.Namespace, size: Size) -> Config:
    model = f"world_model.hidden_dim={size.width} agent.hidden_dim={size.width} "
    model += f"world_model.sequence_model.num_layers={arguments.layers} "
    model += f"world_model.sequence_model.num_heads={arguments.heads}"
    rows = f"loop.batch_size={size.batch} loop.batch_length={size.length} imagination.batch_size={size.rows} "
    rows += f"imagination.context_length={CONTEXT} imagination.horizon={HORIZON} "
    rows += f"player.context_length={ACTING_CONTEXT} replay.capacity={arguments.frames}"
    where = f"accelerator={torch.device(arguments.device).type} precision={PRECISIONS[arguments.precision]}"
    return compose([arguments.config], [*where.split(), *model.split(), *rows.split(), *arguments.set])


class Official:
    """The clone's world model, agent and replay buffer, driven as its own training loop drives them.

    Our modules get its weights. On a GPU its replay buffer is there, as in its configuration.
    """

    def __init__(self, official: Any, phases: Phases, arguments: argparse.Namespace, size: Size) -> None:
        from replay_buffer import ReplayBuffer  # type: ignore[import-not-found]

        training = phases.training
        device, self.size, self.phases = training.fabric.device, size, phases
        actions, bf16 = training.envs.num_actions, arguments.precision == "bf16"
        if device.type == "cpu":
            torch.autocast = CpuAutocast  # type: ignore[misc]
            if bf16:  # probabilities are rounded here, as they are not on a GPU, and do not sum up to one any more
                torch.distributions.Distribution.set_default_validate_args(False)
        self.model, self.agent = their_modules(official, arguments, size.width, actions, device, bf16)
        training.world_model.load_state_dict(world_model_state(self.model.state_dict()))
        training.agent.load_state_dict(agent_state(self.agent.state_dict(), training.agent.state_dict()))
        options = {"warmup_length": 0, "store_on_gpu": device.type == "cuda"}
        self.replay = ReplayBuffer(training.envs.obs_shape, 1, arguments.frames, **options)
        self.logged: dict[str, float] = {}
        self.obs: deque[Tensor] = deque(maxlen=ACTING_CONTEXT)
        self.actions: deque[np.ndarray] = deque(maxlen=ACTING_CONTEXT)
        for _ in range(ACTING_CONTEXT):
            self._remember(np.zeros(1))

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value

    def runs(self) -> dict[str, Run]:
        """One function for each phase."""
        return {
            SAMPLE_16X64: lambda: self.replay.sample(16, 0, 64),
            ACTING: self._act,
            names.SAMPLE_BATCH: self._sample_batch,
            WORLD_MODEL: lambda: self.model.update(*self.batch, logger=self),
            names.SAMPLE_CONTEXTS: self._sample_contexts,
            IMAGINATION: self._imagine,
            AGENT: self._improve,
        }

    def _sample_batch(self) -> None:
        self.batch = self.replay.sample(self.size.batch, 0, self.size.length)

    def _sample_contexts(self) -> None:
        self.contexts = self.replay.sample(self.size.rows, 0, CONTEXT)

    @torch.no_grad()
    def _imagine(self) -> None:
        self.model.eval()
        self.agent.eval()
        obs, action, _, _ = self.contexts
        self.trajectory = self.model.imagine_data(
            self.agent, obs, action, self.size.rows, HORIZON, log_video=False, logger=self
        )

    def _improve(self) -> None:
        latent, action, reward, termination = self.trajectory
        self.agent.update(latent, action, None, None, reward, termination, logger=self)

    @torch.no_grad()
    def _act(self) -> None:
        self.model.eval()
        self.agent.eval()
        context = self.model.encode_obs(torch.cat(list(self.obs), dim=1))
        action = torch.Tensor(np.stack(list(self.actions), axis=1)).cuda()
        latent, hidden = self.model.calc_last_dist_feat(context, action)
        self._remember(self.agent.sample_as_env_action(torch.cat([latent, hidden], dim=-1)))

    def _remember(self, action: np.ndarray) -> None:
        """The current frame and what was done at it."""
        frame = torch.Tensor(self.phases.training.collector.obs).cuda().permute(0, 3, 1, 2).unsqueeze(1)
        self.obs.append(frame / 255)
        self.actions.append(action)


class CpuAutocast(torch.autocast):
    """Autocast that takes the clone's "cuda" for the CPU."""

    def __init__(self, device_type: str, *arguments: Any, **options: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *arguments, **options)


def _our_runs(phases: Phases) -> dict[str, Run]:
    training = phases.training
    runs: dict[str, Run] = {SAMPLE_16X64: lambda: training.replay.sample(16, 64).to(training.fabric.device)}
    return runs | {phase: functools.partial(phases.run, phase) for phase in STEP}


def _alternate(sides: Sequence[dict[str, Run]], rounds: int, device: torch.device) -> dict[str, list[Rounds]]:
    """Warm up, then time every phase of one side after the other, round by round; seconds for each row and side."""
    sides = [{**runs, WHOLE: functools.partial(_run_all, [runs[phase] for phase in STEP])} for runs in sides]
    seconds: dict[str, list[Rounds]] = {row: [[] for _ in sides] for row in ROWS}
    with tqdm(total=len(ROWS) * len(sides) * (rounds + 1), file=sys.stderr, leave=False) as bar:
        for number in range(rounds + 1):
            bar.set_description(f"round {number} of {rounds}" if number else "warm-up")
            for row in ROWS if number else (*STEP, SAMPLE_16X64, WHOLE):
                for side, runs in enumerate(sides):
                    if device.type == "cpu":
                        (_released_allocator, keep_freed_memory)[side]()
                    if number:  # the untimed run before makes the heap as large as this side leaves it
                        seconds[row][side].append(timed(runs[row], torch.get_num_threads()))
                    else:
                        with contextlib.redirect_stdout(sys.stderr):  # the clone tells of its buffers
                            _run_all([runs[row]] * WARM_UP_RUNS[device.type])
                    bar.update()
    return seconds


def _released_allocator() -> None:
    """glibc's defaults as they are once large tensors have been freed: 32 MiB and more is mapped anew each time."""
    if sys.platform.startswith("linux"):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((M_MMAP_MAX, 65536), (M_MMAP_THRESHOLD, 32 * MIB), (M_TRIM_THRESHOLD, 64 * MIB)):
            mallopt(parameter, value)


def _run_all(runs: Sequence[Run]) -> None:
    for run in runs:
        run()


def _spread(rounds: Rounds) -> dict[str, float]:
    return spread([seconds for measured in rounds for seconds in measured.times])


def _numbers(seconds: dict[str, list[Rounds]]) -> dict[str, Any]:
    return {
        row: {"official_seconds": _spread(theirs), "stormlit_seconds": _spread(ours), "ratio": ratio(theirs, ours)}
        for row, (theirs, ours) in seconds.items()
    }


def _table(seconds: dict[str, list[Rounds]], arguments: argparse.Namespace, size: Size, made: dict[str, Any]) -> str:
    lines = [
        f"{made['device']}, {made['threads']} threads, torch {torch.__version__}; world model "
        f"{size.batch}x{size.length}, imagination {size.rows}x({CONTEXT}+{HORIZON}), width {size.width}, "
        f"{arguments.precision}; {arguments.frames:,} frames; {arguments.rounds} rounds",
        "",
        "| phase | official, ms | stormlit, ms | official / stormlit | quartiles |",
        "|---|---|---|---|---|",
    ]
    for row, (theirs, ours) in seconds.items():
        cells = [f"{1e3 * _spread(side)['median']:,.2f}" for side in (theirs, ours)]
        cells.append("{median:.2f} | {low:.2f} - {high:.2f}".format(**ratio(theirs, ours)))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)
