"""Timing the phases of training steps: warm-up, then rounds in which all settings take turns, in one process."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from stormlit.cli.bench.counting import OperationCounter
from stormlit.cli.bench.phases import PHASES, Phases, prepared
from stormlit.config.schema import Config
from stormlit.nn.compilation import should_compile

WHOLE = "whole step"
# Compiling and capturing on a GPU take a few runs of their own.
WARM_UP_RUNS = {"cpu": 1, "cuda": 3}
# What is quick is timed several times a round: for so many seconds, but not more often than this.
SECONDS_A_ROUND, MOST_RUNS_A_ROUND = 0.1, 20


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """values: at least one."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
        return cls(median, low, high)


@dataclass(slots=True)
class Measured:
    """What one setting took.

    seconds: for each of ``PHASES`` and ``WHOLE`` the seconds of every run, a list for each round.
    counts: what one run of each phase launched.  memory: bytes that one run of each phase takes on the GPU beyond what
    was taken before it, empty on the CPU.  times_per_env_step: how often each phase runs for one environment step.
    whole_env_steps: environment steps in one run of ``WHOLE``.  threads: that it computes with.
    """

    name: str
    config: Config
    precision: str
    compiled: bool
    device: torch.device
    times_per_env_step: dict[str, float]
    whole_env_steps: int
    threads: int
    counts: dict[str, OperationCounter] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[list[float]]] = field(default_factory=lambda: {phase: [] for phase in (*PHASES, WHOLE)})

    def spread(self, phase: str) -> Spread:
        """Seconds of one run, over the runs of all rounds."""
        return Spread.of([seconds for one_round in self.seconds[phase] for seconds in one_round])

    def share(self, phase: str) -> float:
        """The part of a training step that a phase takes, by medians and times per environment step."""
        cost = {each: self.spread(each).median * self.times_per_env_step[each] for each in PHASES}
        return cost[phase] / sum(cost.values())

    @property
    def steps_per_second(self) -> float:
        """Environment steps a second with all updates they owe."""
        return self.whole_env_steps / self.spread(WHOLE).median

    def ratio(self, other: Measured, phase: str) -> Spread:
        """How many times as long this setting takes; for ``WHOLE`` of one environment step, however many were timed."""
        scale = other.whole_env_steps / self.whole_env_steps if phase == WHOLE else 1.0
        return ratio_of_rounds(self.seconds[phase], other.seconds[phase], scale)


def ratio_of_rounds(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]], scale: float = 1.0) -> Spread:
    """Over the rounds, the ratio of the medians of each: a machine that slows down for a while slows both.

    own, other: the seconds of every run, a list for each of the same rounds.  scale: of all ratios.
    """
    return Spread.of([scale * statistics.median(a) / statistics.median(b) for a, b in zip(own, other, strict=True)])


def timed(run: Callable[[], object], runs: int, device: torch.device) -> list[float]:
    """Seconds of each of several runs, each until the device has finished it."""
    seconds = []
    for _ in range(runs):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def runs_a_round(seconds: float) -> int:
    """How often to time in a round what takes so long."""
    return max(1, min(MOST_RUNS_A_ROUND, int(SECONDS_A_ROUND / max(seconds, 1e-9))))


def measure(settings: Sequence[tuple[str, Config]], rounds: int) -> list[Measured]:
    """Measure named configurations side by side: in every round each phase of each of them, in turn.

    Shows its progress on stderr.  Raises what building a training raises.
    """
    with ExitStack() as stack:
        total = len(settings) * (len(PHASES) + 1) * (rounds + 1)
        bar = stack.enter_context(tqdm(total=total, desc="prepare", file=sys.stderr, leave=False))
        trainings = [stack.enter_context(prepared(config)) for _, config in settings]
        results = [_describe(name, phases) for (name, _), phases in zip(settings, trainings, strict=True)]
        bar.set_description("warm-up")
        sides = [(p, result, _warm_up(p, result, bar.update)) for p, result in zip(trainings, results, strict=True)]
        for number in range(1, rounds + 1):
            bar.set_description(f"round {number} of {rounds}")
            for phase in (*PHASES, WHOLE):
                for phases, result, estimate in sides:
                    torch.set_num_threads(phases.threads)
                    runs = runs_a_round(estimate[phase])
                    result.seconds[phase].append(timed(_running(phases, phase), runs, result.device))
                    bar.update()
    return results


def _describe(name: str, phases: Phases) -> Measured:
    training = phases.training
    return Measured(
        name=name,
        config=phases.config,
        precision=training.fabric.strategy.precision.precision,
        compiled=should_compile(phases.config.compile, training.fabric),
        device=training.fabric.device,
        times_per_env_step={phase: phases.times_per_env_step(phase) for phase in PHASES},
        whole_env_steps=phases.whole_env_steps,
        threads=phases.threads,
    )


def _warm_up(phases: Phases, result: Measured, advance: Callable[[], object]) -> dict[str, float]:
    """Run everything before it is timed, and count; returns the seconds that one run roughly takes."""
    torch.set_num_threads(phases.threads)
    estimate: dict[str, float] = {}
    for phase in (*PHASES, WHOLE):
        for _ in range(WARM_UP_RUNS[result.device.type]):
            [estimate[phase]] = timed(_running(phases, phase), 1, result.device)
        if phase != WHOLE:
            if result.device.type == "cuda":  # now, since the rounds reach the peak of the whole process again
                before = torch.cuda.memory_allocated(result.device)
                torch.cuda.reset_peak_memory_stats(result.device)
                phases.run(phase)
                result.memory[phase] = torch.cuda.max_memory_allocated(result.device) - before
            result.counts[phase] = phases.count(phase)
        advance()
    return estimate


def _running(phases: Phases, phase: str) -> Callable[[], None]:
    return phases.run_whole if phase == WHOLE else lambda: phases.run(phase)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
