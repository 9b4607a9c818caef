"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from stormlit.cli.bench.measure import WHOLE, Measured, Spread
from stormlit.cli.bench.phases import PHASES
from stormlit.cli.columns import columns
from stormlit.config.compose import to_tree
from stormlit.errors import counted
from stormlit.nn.compilation import compile_report
from stormlit.runs.result import peak_memory
from stormlit.tracking import run_tags

# Of the JSON files, for those who read them.
SCHEMA = 1
HEADER = ("phase", "median", "quartiles", "share", "operations", "host syncs", "memory")


def report(results: Sequence[Measured]) -> str:
    """A table for each setting and, where there are several, the ratios of the first to each of the others."""
    device = results[0].device
    lines = [f"{run_tags(device)['device']}, torch {torch.__version__}"]
    for result in results:
        lines += [
            "",
            f"{result.name} ({result.precision}, {counted(result.threads, 'thread')})",
            *columns([HEADER, *_rows(result)]),
        ]
        lines.append(f"{result.steps_per_second:.3g} environment steps a second, with the updates they owe")
    if len(results) > 1:
        lines += ["", "ratios of medians, round by round: median (quartiles); above 1 the second is faster"]
        lines += columns([("phase", *(_against(results[0], other) for other in results[1:])), *_ratio_rows(results)])
    kind, peak = peak_memory(device)
    return "\n".join([*lines, "", f"peak memory ({kind}): {_mebibytes(peak)}"])


def header(step: str, command: str, device: torch.device) -> dict[str, Any]:
    """What the JSON file of every benchmark begins with.  command: that measures the same again."""
    made_with = {**run_tags(device), "threads": torch.get_num_threads(), "cpu_cores": os.cpu_count()}
    return {"schema": SCHEMA, "step": step, "command": command, "made_with": made_with, **compile_report()}


def as_json(results: Sequence[Measured], rounds: int, command: str) -> dict[str, Any]:
    """Everything in the report, each setting's configuration, and the operations by name.  Times are in seconds.

    command: see ``header``.
    """
    device = results[0].device
    kind, peak = peak_memory(device)
    ratios = {
        _against(results[0], other): {phase: asdict(results[0].ratio(other, phase)) for phase in (*PHASES, WHOLE)}
        for other in results[1:]
    }
    return {
        **header("bench", command, device),
        "rounds": rounds,
        "peak_memory": {"of": kind, "bytes": peak},
        "settings": [_setting(result) for result in results],
        "ratios": ratios,
    }


def _setting(result: Measured) -> dict[str, Any]:
    phases = {
        phase: {
            "seconds": asdict(result.spread(phase)),
            "runs": sum(len(one_round) for one_round in result.seconds[phase]),
            "times_per_env_step": result.times_per_env_step[phase],
            "share": result.share(phase),
            "operations": counter.operations.total(),
            "host_syncs": counter.syncs.total(),
            "operations_by_name": dict(counter.operations.most_common()),
            "memory_bytes": result.memory.get(phase),
        }
        for phase, counter in result.counts.items()
    }
    return {
        "name": result.name,
        "precision": result.precision,
        "compiled": result.compiled,
        "threads": result.threads,
        "config": to_tree(result.config),
        "phases": phases,
        "whole_step": {
            "seconds": asdict(result.spread(WHOLE)),
            "env_steps": result.whole_env_steps,
            "env_steps_per_second": result.steps_per_second,
        },
    }


def _rows(result: Measured) -> list[tuple[str, ...]]:
    rows = [
        (
            phase,
            *_times(result.spread(phase)),
            f"{result.share(phase):.1%}",
            f"{result.counts[phase].operations.total():,}",
            str(result.counts[phase].syncs.total()),
            _mebibytes(result.memory[phase]) if phase in result.memory else "-",
        )
        for phase in PHASES
    ]
    steps = f"{WHOLE} of {result.whole_env_steps}" if result.whole_env_steps > 1 else WHOLE
    return [*rows, (steps, *_times(result.spread(WHOLE)), "", "", "", "")]


def _ratio_rows(results: Sequence[Measured]) -> list[tuple[str, ...]]:
    return [(phase, *(_ratio(results[0].ratio(other, phase)) for other in results[1:])) for phase in (*PHASES, WHOLE)]


def _against(first: Measured, other: Measured) -> str:
    return f"{first.name} / {other.name}"


def _times(seconds: Spread) -> tuple[str, str]:
    return f"{seconds.median * 1e3:,.2f} ms", f"{seconds.low * 1e3:,.2f} - {seconds.high * 1e3:,.2f}"


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} - {ratio.high:.2f})"


def _mebibytes(number: int) -> str:
    return f"{number / 2**20:,.0f} MiB"
