"""``stormlit bench``: how long each phase of training takes, what it launches, and where it makes the host wait."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.benchmark import Measurement, Timer
from tqdm import tqdm

from stormlit.cli.output import columns, written
from stormlit.cli.phases import PHASES, WHOLE, Phases, prepared
from stormlit.config.compose import compose, is_override, to_tree
from stormlit.config.schema import Config
from stormlit.errors import ConfigError, counted
from stormlit.nn.compilation import compile_report, should_compile
from stormlit.runs.result import peak_memory
from stormlit.storm.fabric_internals import launched_by_fabric
from stormlit.tracking import run_tags

SCHEMA = 1  # of the JSON files, for those who read them
# Compiling and capturing on a GPU take a few runs of their own.
WARM_UP_RUNS = {"cpu": 1, "cuda": 3}
SECONDS_A_ROUND = 0.1  # at least, for each phase
HEADER = ("phase", "median", "quartiles", "share", "operations", "host syncs", "memory")
Numbers = dict[str, Any]


def bench(
    files: Sequence[str], overrides: Sequence[str], groups: Sequence[str], rounds: int, output: Path | None
) -> str:
    """Measure one configuration, or several side by side; returns the report, and writes it as JSON.

    files, overrides: see ``compose``.  groups: further words for each of the configurations to compare, none or two and
    more.  rounds: how often everything is measured.  output: JSON file, None: ``bench-<last of files>.json``.
    """
    if rounds < 1:
        raise ConfigError(f"--rounds={rounds}: expected at least 1")
    if launched_by_fabric():
        raise ConfigError("bench measures a single process: call `stormlit bench` without `fabric run`")
    output = output or Path(f"bench-{Path(files[-1]).stem if files else 'storm'}.json")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--json={output}: the folder {output.parent} does not exist")
    compared = ["--compare", *groups] if groups else []
    words = ["stormlit", "bench", *(Path(file).name for file in files), *overrides, "--rounds", str(rounds), *compared]
    found = measure(_settings(files, overrides, groups), rounds, shlex.join(words))
    return f"{report(found)}\n{written(output, found)}"


def _settings(files: Sequence[str], overrides: Sequence[str], groups: Sequence[str]) -> dict[str, Config]:
    """A configuration for each group, by its words, or the one without any."""
    if len(groups) == 1:
        raise ConfigError(f"--compare '{groups[0]}': expected two or more groups of words, such as '' '{groups[0]}'")
    if len(set(groups)) < len(groups):
        raise ConfigError("--compare: expected groups that differ from each other")
    settings = {}
    for group in groups or [""]:
        try:
            words = [*files, *overrides, *shlex.split(group)]
        except ValueError as error:
            raise ConfigError(f"--compare {group!r}: cannot be read as words ({error})") from error
        layers = [word for word in words if not is_override(word)]
        settings[group or "as configured"] = compose(layers, [word for word in words if is_override(word)])
    return settings


def measure(settings: Mapping[str, Config], rounds: int, command: str) -> Numbers:
    """Measure named configurations side by side: in every round each phase of each of them, in turn.

    Returns what the JSON file holds, in seconds and bytes; progress is shown on stderr.  command: see ``header``.
    Raises what building a training raises.
    """
    phases = (*PHASES, WHOLE)
    with ExitStack() as stack:
        total = len(settings) * len(phases) * (rounds + 1)
        bar = stack.enter_context(tqdm(total=total, desc="prepare", file=sys.stderr, leave=False))
        subjects = {name: stack.enter_context(prepared(config)) for name, config in settings.items()}
        bar.set_description("warm-up")
        launched = {name: _warm_up(subject, bar.update) for name, subject in subjects.items()}
        taken: dict[str, dict[str, list[Measurement]]] = {name: {phase: [] for phase in phases} for name in subjects}
        for number in range(1, rounds + 1):
            bar.set_description(f"round {number} of {rounds}")
            for phase, name in itertools.product(phases, subjects):
                taken[name][phase].append(timed(subjects[name].functions[phase], subjects[name].threads))
                bar.update()
    first, *others = subjects
    device = subjects[first].training.fabric.device
    ratios = {}
    for other in others:
        steps = subjects[other].whole_env_steps / subjects[first].whole_env_steps
        ratios[f"{first} / {other}"] = {
            phase: ratio(taken[first][phase], taken[other][phase], steps if phase == WHOLE else 1.0) for phase in phases
        }
    kind, peak = peak_memory(device)
    return {
        **header("bench", command, device),
        "rounds": rounds,
        "peak_memory": {"of": kind, "bytes": peak},
        "settings": [{"name": name, **_setting(subjects[name], taken[name], launched[name])} for name in subjects],
        "ratios": ratios,
    }


def header(step: str, command: str, device: torch.device) -> Numbers:
    """What the JSON file of every benchmark begins with.  command: that measures the same again."""
    made_with = {**run_tags(device), "threads": torch.get_num_threads(), "cpu_cores": os.cpu_count()}
    return {"schema": SCHEMA, "step": step, "command": command, "made_with": made_with, **compile_report()}


def timed(function: Callable[[], object], threads: int) -> Measurement:
    """Seconds of a function, after one untimed run and until the device has finished."""
    timer = Timer("function()", globals={"function": function}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=SECONDS_A_ROUND)


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles around it."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "low": low, "high": high}


def ratio(own: Sequence[Measurement], other: Sequence[Measurement], scale: float = 1.0) -> dict[str, float]:
    """How many times as long as another something takes, round by round: a machine that slows down slows both."""
    return spread([scale * one.median / two.median for one, two in zip(own, other, strict=True)])


def _warm_up(subject: Phases, advance: Callable[[], object]) -> dict[str, Numbers]:
    """Run everything before it is timed; returns what one run of each phase launches, and takes on a GPU."""
    found = {}
    device = subject.training.fabric.device
    for phase in (*PHASES, WHOLE):
        for _ in range(WARM_UP_RUNS[device.type]):
            subject.run(phase)
        if phase != WHOLE:
            memory = None
            if device.type == "cuda":
                before = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
                subject.run(phase)
                memory = torch.cuda.max_memory_allocated(device) - before
            counter = subject.count(phase)
            found[phase] = {
                "operations": counter.operations.total(),
                "host_syncs": counter.syncs.total(),
                "operations_by_name": dict(counter.operations.most_common()),
                "memory_bytes": memory,
            }
        advance()
    return found


def _setting(subject: Phases, taken: dict[str, list[Measurement]], launched: dict[str, Numbers]) -> Numbers:
    seconds = {phase: spread([time for one in rounds for time in one.times]) for phase, rounds in taken.items()}
    often = {phase: subject.times_per_env_step(phase) for phase in PHASES}
    step = sum(seconds[phase]["median"] * often[phase] for phase in PHASES)
    fabric, env_steps = subject.training.fabric, subject.whole_env_steps
    return {
        "precision": fabric.strategy.precision.precision,
        "compiled": should_compile(subject.config.compile, fabric),
        "threads": subject.threads,
        "config": to_tree(subject.config),
        "phases": {
            phase: {
                "seconds": seconds[phase],
                "runs": sum(one.number_per_run * len(one.times) for one in taken[phase]),
                "times_per_env_step": often[phase],
                "share": seconds[phase]["median"] * often[phase] / step,
                **launched[phase],
            }
            for phase in PHASES
        },
        "whole_step": {
            "seconds": seconds[WHOLE],
            "env_steps": env_steps,
            "env_steps_per_second": env_steps / seconds[WHOLE]["median"],
        },
    }


def report(found: Numbers) -> str:
    """A table for each setting and, where there are several, the ratios of the first to each of the others."""
    lines = [f"{found['made_with']['device']}, torch {torch.__version__}"]
    for setting in found["settings"]:
        whole, steps = setting["whole_step"], setting["whole_step"]["env_steps"]
        rows = [HEADER]
        for phase, measured in setting["phases"].items():
            memory = "-" if measured["memory_bytes"] is None else _mebibytes(measured["memory_bytes"])
            launched = f"{measured['operations']:,}", str(measured["host_syncs"])
            rows.append((phase, *_times(measured["seconds"]), f"{measured['share']:.1%}", *launched, memory))
        rows.append((f"{WHOLE} of {steps}" if steps > 1 else WHOLE, *_times(whole["seconds"]), "", "", "", ""))
        lines += ["", f"{setting['name']} ({setting['precision']}, {counted(setting['threads'], 'thread')})"]
        lines += columns(rows)
        lines.append(f"{whole['env_steps_per_second']:.3g} environment steps a second, with the updates they owe")
    if ratios := found["ratios"]:
        lines += ["", "ratios of medians, round by round: median (quartiles); above 1 the second is faster"]
        cells = [[phase, *(_ratio(ratios[pair][phase]) for pair in ratios)] for phase in (*PHASES, WHOLE)]
        lines += columns([["phase", *ratios], *cells])
    peak = found["peak_memory"]
    return "\n".join([*lines, "", f"peak memory ({peak['of']}): {_mebibytes(peak['bytes'])}"])


def _times(seconds: dict[str, float]) -> tuple[str, str]:
    return f"{seconds['median'] * 1e3:,.2f} ms", f"{seconds['low'] * 1e3:,.2f} - {seconds['high'] * 1e3:,.2f}"


def _ratio(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} ({values['low']:.2f} - {values['high']:.2f})"


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
