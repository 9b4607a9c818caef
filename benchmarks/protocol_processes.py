"""Several training processes of one setting on one device: what each of them does in the same seconds.

    python benchmarks/protocol_processes.py storm env.game=Pong --count 3 --seconds 30 --json processes.json

Step ``processes`` of ``gpu_protocol.py``. Every process builds a training of its own and warms up; then all start
together, and take whole steps (see ``stormlit bench``) until the time is up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch

from stormlit.cli.bench.measure import WARM_UP_RUNS, WHOLE, peak_memory, timed
from stormlit.cli.bench.phases import prepared
from stormlit.config.compose import compose
from stormlit.files import write_json


class WorkerError(RuntimeError):
    """A process that ended before it had measured."""


def side_by_side(words: list[str], count: int, seconds: float) -> dict[str, Any]:
    """Start the processes, let them go at once, and add up; they leave the device together, too."""
    command = [sys.executable, __file__, *words, "--worker", "--seconds", str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(command, **pipes) for _ in range(count)]
    try:
        for worker in workers:
            _line(worker)
        for worker in workers:
            _pipe(worker.stdin).write("start\n")
            _pipe(worker.stdin).flush()
        measured = [json.loads(_line(worker)) for worker in workers]
        for worker in workers:
            worker.communicate()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    rates = [one["env_steps"] / one["seconds"] for one in measured]
    return {
        "processes": measured,
        "env_steps_per_second": rates,
        "total_env_steps_per_second": sum(rates),
        "device_bytes": max((one["device_bytes"] for one in measured if one["device_bytes"]), default=None),
    }


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def _line(worker: subprocess.Popen[str]) -> str:
    line = _pipe(worker.stdout).readline()
    if not line:
        raise WorkerError(f"a process ended with exit code {worker.wait()} before it had measured; see its error above")
    return line


def work(words: list[str], seconds: float) -> None:
    """One of the processes: says when it is ready, waits for a line, measures, and waits for the others to end."""
    config = compose([word for word in words if "=" not in word], [word for word in words if "=" in word])
    with prepared(config) as phases:
        device = phases.training.fabric.device
        timed(phases.run_whole, WARM_UP_RUNS[device.type], device)
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        env_steps, start, elapsed = 0, time.perf_counter(), 0.0
        while elapsed < seconds:
            [_] = timed(phases.run_whole, 1, device)
            env_steps, elapsed = env_steps + phases.whole_env_steps, time.perf_counter() - start
        print(json.dumps({"env_steps": env_steps, "seconds": elapsed, **_memory(device)}), flush=True)
        sys.stdin.read()


def _memory(device: torch.device) -> dict[str, Any]:
    """Of this process, and what is taken of the GPU by all and everything."""
    kind, peak = peak_memory(device)
    found: dict[str, Any] = {"memory_of": kind, "peak_bytes": peak, "reserved_bytes": None, "device_bytes": None}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"reserved_bytes": torch.cuda.max_memory_reserved(device), "device_bytes": total - free}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="CONFIG|KEY=VALUE")
    parser.add_argument("--count", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, default=30.0, help=f"in which each takes a {WHOLE} after the other")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args()
    if given.worker:
        work(given.words, given.seconds)
        return 0
    try:
        numbers = side_by_side(given.words, given.count, given.seconds)
    except WorkerError as error:
        print(f"processes: {error}", file=sys.stderr)
        return 1
    if given.json:
        write_json(given.json, numbers)
    print(f"{given.count} processes: {numbers['total_env_steps_per_second']:.3g} environment steps a second in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
